"""One TCP connection to the simulator: a WebSocket's life, or plain HTTP requests.

HTTP is parsed by h11 and the WebSocket protocol by `websockets`' sans-I/O `ServerProtocol`; only data frames bypass it:
they come ready-made from `frames.py` and go to the transport in large writes. A client that reads too slowly is
disconnected once `client_buffer_bytes` wait for it, as an exchange does.

Next in the flow: `server.py`, which knows all connections.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, unquote, urlsplit

import h11
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from k2ray.sim.commands import answer_command, shutdown_notice
from k2ray.sim.frames import Form, text_frame
from k2ray.sim.http import HttpRequest
from k2ray.sim.limits import MESSAGES_WINDOW_S, SlidingWindow

if TYPE_CHECKING:
    from k2ray.sim.server import Server

MAX_REQUEST_BYTES = 65_536
CLOSE_S = 1.0
"""What a client may take to answer a close frame."""


class Connection(asyncio.Protocol):
    """One TCP connection: plain HTTP until it asks for a WebSocket.

    Attributes:
        number: Counts up from 1; what faults and counters call it.
        streams: Subscribed stream names, in order of subscription.
        form: How its frames are written.
        peer: The client's address.
        frames_sent: Frames handed to the transport, by stream kind. `frames_missed`: those a fault kept from it.
    """

    def __init__(self, server: Server, number: int) -> None:
        self._server = server
        self.number = number
        self.streams: dict[str, None] = {}
        self.form = Form(combined=False, microseconds=False)
        self.frames_sent: Counter[str] = Counter()
        self.frames_missed = 0
        self.peer = ""
        self.half_open = False
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST_BYTES)
        self._raw = b""
        self._request: h11.Request | None = None
        self._body = b""
        self._answering: asyncio.Task[None] | None = None
        self._protocol: ServerProtocol | None = None
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[bytes | bytearray] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._delayed_until: float = 0.0
        self._ping_sent_at: float = 0.0
        self._pong_due: float | None = None
        self._messages = SlidingWindow(server.limits.messages_per_s, MESSAGES_WINDOW_S)
        self._opened_at = time.monotonic()
        self._notified = False
        self._ended = False

    # -- what the exchange calls

    @property
    def is_websocket(self) -> bool:
        """Return whether this connection takes frames."""
        return self._protocol is not None and self._transport is not None

    @property
    def age_s(self) -> float:
        """Return the seconds since it became a WebSocket."""
        return time.monotonic() - self._opened_at

    @property
    def waiting_bytes(self) -> int:
        """Return how many bytes wait for a slow or delayed client."""
        return self._waiting_bytes

    def send(self, data: bytes | bytearray, frames: Counter[str] | None = None) -> None:
        """Send whole frames; a client that cannot take them is disconnected past the limit.

        Args:
            data: Encoded frames.
            frames: How many of which kind they are, for the counters.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self.half_open:
            self.frames_missed += frames.total() if frames else 0
            return
        if frames:
            self.frames_sent.update(frames)
        if not (self._paused or self._delayed_until):
            transport.write(data)
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > self._server.limits.client_buffer_bytes and not self._delayed_until:
            self._server.counters["slow_clients_dropped"] += 1
            self.abort()

    def close(self, code: int = 1001, reason: str = "") -> None:
        """Close with a close frame; the client answers it and TCP ends."""
        if self._protocol is None:
            self.abort()
            return
        self._protocol.send_close(code, reason)
        self._flush_protocol()

    def end(self, code: int, reason: str) -> None:
        """Close with a close frame, and drop the client if it has not gone within `CLOSE_S`."""
        self.close(code, reason)
        asyncio.get_running_loop().call_later(CLOSE_S, self.abort)

    def _cut(self, counter: str, code: int, reason: str) -> None:
        """End a connection that broke a limit, and count it once: it may go on breaking it until it is gone."""
        if not self._ended:
            self._ended = True
            self._server.counters[counter] += 1
            self.end(code, reason)

    def announce_shutdown(self) -> None:
        """Tell the client that this server is about to go."""
        self._notified = True
        self._server.counters["shutdown_notices"] += 1
        self.send(text_frame(shutdown_notice(self._server.now_us(), self.form)))

    def abort(self) -> None:
        """Drop the TCP connection without a word."""
        if self._transport is not None:
            self._transport.abort()

    def finish(self, data: bytes) -> None:
        """Write `data`, which may end amid a frame, and end the connection."""
        if self._transport is not None:
            self._transport.write(data)
            self._transport.close()

    def freeze(self) -> None:
        """Stop reading and sending for good, but keep TCP up: a half-open connection."""
        self.half_open = True
        if self._transport is not None:
            self._transport.pause_reading()

    def delay(self, seconds: float) -> None:
        """Hold back everything for `seconds`, then send it at once."""
        self._delayed_until = time.monotonic() + seconds
        asyncio.get_running_loop().call_later(seconds, self._end_delay)

    def disturb(self, fault: str, *, seconds: float | None, abort: bool, code: int) -> None:
        """Let this connection go wrong, as `faults.CONNECTION_FAULTS` say; `faults.py` says what the rest means."""
        if fault == "delay":
            self.delay(seconds or 0.0)
        elif fault == "half_open":
            self.freeze()
            if seconds is not None:
                asyncio.get_running_loop().call_later(seconds, self.abort)
        elif fault == "server_shutdown":
            self.announce_shutdown()
            if seconds is not None:
                asyncio.get_running_loop().call_later(seconds, self.end, 1001, "the server goes")
        elif abort:
            self.abort()
        else:
            self.close(code, "fault injected")

    def keep_alive(self, now: float) -> None:
        """Ping when it is time; drop the client when a pong is overdue or its life is over. Called once a second."""
        if self._protocol is None or self.half_open:
            return
        limits = self._server.limits
        left = limits.lifetime_s - (now - self._opened_at)
        if left <= 0:
            self._cut("lifetime_cuts", 1001, "a connection lives 24 hours")
            return
        if limits.shutdown_notice_s and left <= limits.shutdown_notice_s and not self._notified:
            self.announce_shutdown()
        if self._pong_due is not None and now >= self._pong_due:
            self._server.counters["pong_timeouts"] += 1
            self.close(1008, "Pong timeout")
            self.abort()
        elif now - self._ping_sent_at >= limits.ping_interval_s:
            self._ping_sent_at = now
            if self._pong_due is None:
                self._pong_due = now + limits.pong_timeout_s
            self._protocol.send_ping(str(time.time_ns() // 1_000_000).encode())
            self._server.counters["pings_sent"] += 1
            self._flush_protocol()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop has transports that are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self.peer = str((transport.get_extra_info("peername") or ("",))[0])
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        del exc
        self._transport = None
        self._waiting.clear()
        self._waiting_bytes = 0
        if self._answering is not None:
            self._answering.cancel()
        self._server.lost(self)

    def pause_writing(self) -> None:
        """The transport's buffer is full: gather here from now on."""
        self._paused = True

    def resume_writing(self) -> None:
        """The client caught up."""
        self._paused = False
        self._drain()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request or of WebSocket frames."""
        if self._protocol is not None:
            self._protocol.receive_data(data)
            self._handle_events()
            return
        self._raw += data
        try:
            self._http.receive_data(data)
            self._handle_http()
        except h11.RemoteProtocolError:
            self._server.counters["bad_requests"] += 1
            self.abort()

    # -- HTTP

    def _handle_http(self) -> None:
        while self._answering is None:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                if any(name == b"upgrade" for name, _ in event.headers):
                    self._upgrade(event)
                    return
                self._request, self._body = event, b""
            elif isinstance(event, h11.Data):
                self._body += bytes(event.data)
                if len(self._body) > MAX_REQUEST_BYTES:
                    self.abort()
            elif isinstance(event, h11.EndOfMessage):
                assert self._request is not None
                self._answering = asyncio.get_running_loop().create_task(self._answer(self._request, self._body))
            elif isinstance(event, h11.ConnectionClosed):
                self.abort()
                return
            else:
                return

    async def _answer(self, request: h11.Request, body: bytes) -> None:
        target = urlsplit(request.target.decode("ascii"))
        response = await self._server.handler(
            HttpRequest(
                request.method.decode("ascii"),
                target.path,
                {name: values[-1] for name, values in parse_qs(target.query).items()},
                {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers},
                body,
                self.peer,
            )
        )
        self._server.counters["rest_requests"] += 1
        transport = self._transport
        if transport is None or self.half_open:
            return
        headers = [
            ("content-type", "application/json;charset=UTF-8"),
            ("content-length", str(len(response.body))),
            *response.headers,
        ]
        head = self._http.send(h11.Response(status_code=response.status, headers=headers))
        content = self._http.send(h11.Data(data=response.body))
        end = self._http.send(h11.EndOfMessage())
        transport.write((head or b"") + (content or b"") + (end or b""))
        self._answering, self._raw = None, b""
        if self._http.our_state is h11.MUST_CLOSE:
            transport.close()
        else:
            self._http.start_next_cycle()
            self._handle_http()

    # -- WebSocket

    def _upgrade(self, request: h11.Request) -> None:
        target = urlsplit(request.target.decode("ascii"))
        query = {name: values[-1] for name, values in parse_qs(target.query).items()}
        path = unquote(target.path).rstrip("/")
        self._protocol = ServerProtocol(max_size=MAX_REQUEST_BYTES)
        self._protocol.receive_data(self._raw)
        events = self._protocol.events_received()
        if not events or not isinstance(events[0], Request):
            self.abort()
            return
        if path == "/stream":
            names, combined = query.get("streams", "").split("/"), True
        elif path == "/ws" or path.startswith("/ws/"):
            names, combined = path.removeprefix("/ws").split("/"), False
        else:
            self._protocol.send_response(self._protocol.reject(404, "no such path\n"))
            self._flush_protocol()
            return
        streams = dict.fromkeys(name for name in names if name)
        if len(streams) > self._server.limits.streams:
            self._server.counters["stream_limit_refusals"] += 1
            self._protocol.send_response(self._protocol.reject(400, f"at most {self._server.limits.streams} streams\n"))
            self._flush_protocol()
            return
        if not self._server.may_connect(self.peer):
            self._protocol.send_response(self._protocol.reject(429, "too many connections\n"))
            self._flush_protocol()
            return
        self._protocol.send_response(self._protocol.accept(events[0]))
        if self._protocol.handshake_exc is not None:
            self._flush_protocol()
            return
        self.form = Form(combined=combined, microseconds=query.get("timeUnit", "").upper() == "MICROSECOND")
        self.streams = streams
        self._ping_sent_at = self._opened_at = time.monotonic()
        self._flush_protocol()
        self._server.counters["websockets_opened"] += 1
        self._server.subscribed(self)

    def _handle_events(self) -> None:
        assert self._protocol is not None
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            counters = self._server.counters
            # A pong that answers our ping is ours to ask for; everything else counts against the client.
            answers = event.opcode is Opcode.PONG and self._pong_due is not None
            if not answers and event.opcode is not Opcode.CLOSE and not self._messages.take(time.monotonic()):
                self._cut("message_limit_cuts", 1008, "Too many requests")
                return
            if event.opcode is Opcode.PONG:
                self._pong_due = None
                counters["pongs_received"] += 1
            elif event.opcode is Opcode.PING:
                counters["pings_received"] += 1
            elif event.opcode is Opcode.TEXT and self.is_websocket:
                answer, changed = answer_command(self, bytes(event.data), self._server.limits.streams)
                if changed:
                    self._server.subscribed(self)
                self._protocol.send_text(answer)
        self._flush_protocol()

    def _flush_protocol(self) -> None:
        """Send what `ServerProtocol` wants to send; an empty piece of it means end the connection."""
        assert self._protocol is not None
        for piece in self._protocol.data_to_send():
            if piece:
                self.send(piece)
            elif self._transport is not None and not self.half_open:
                self._transport.close()

    def _end_delay(self) -> None:
        if time.monotonic() + 0.001 >= self._delayed_until:
            self._delayed_until = 0.0
            self._drain()

    def _drain(self) -> None:
        while self._waiting and not (self._paused or self._delayed_until) and self._transport is not None:
            data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self._transport.write(data)
