"""The default shell: `websockets`' sans-I/O protocol under an asyncio.BufferedProtocol. Only importer of websockets.

The library does the handshake, control frames, fragments, errors and the close. Whole, unfragmented data frames of an
open connection, which is all that comes at a high rate, are cut out of the read buffer here: the library takes 2 to
3 us for each, this loop a tenth. It is fed the other frames one whole frame at a time, so that it never holds part of
one while the connection is open; once it is closing, everything goes to the library.
"""

from __future__ import annotations

import asyncio
from typing import cast
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from k2ray.errors import ExchangeUnavailable
from k2ray.feed.transport import Endpoint, Sink, explain, refused

READ_BYTES = 262_144
"""One read, and so the work of one turn of the event loop: some 1,500 trades. asyncio's TLS layer reads no more."""

CLOSE_TIMEOUT_S = 3.0
"""How long the peer may take to finish a close, then TLS's own; after that the connection is cut."""

_FINAL_TEXT, _FINAL_BINARY = 0x81, 0x82
_HEAD_END = b"\r\n\r\n"
_LONGEST_HEAD = 65_536


class WebSocket(asyncio.BufferedProtocol):
    """One connection; `connect` makes it. Implements `transport.Transport`."""

    def __init__(self, endpoint: Endpoint, sink: Sink) -> None:
        self._protocol = ClientProtocol(parse_uri(endpoint.url), max_size=endpoint.max_frame_bytes)
        self._max_bytes = endpoint.max_frame_bytes
        self._sink = sink
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._rest = b""
        self._fragments: list[bytes] = []
        self._frames: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._cut_timer: asyncio.TimerHandle | None = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # What the session calls.

    def send_text(self, text: bytes) -> None:
        """Send a text message; see `Transport`."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(text)
            self._write()

    def ping(self, payload: bytes) -> None:
        """Send a ping; see `Transport`."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(payload)
            self._write()

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake; see `Transport`."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
            self._write()

    def cut(self) -> None:
        """Drop the connection; see `Transport`."""
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the handshake's request."""
        # uvloop, which Ray's actors run on, has transports that are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._protocol.send_request(self._protocol.connect())
        self._write()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the one read buffer; its content is copied out in `buffer_updated`."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take one read."""
        data = self._rest + self._buffer[:nbytes] if self._rest else bytes(self._buffer[:nbytes])
        self._rest = b""
        if self._protocol.state is State.CONNECTING:
            data = self._feed_head(data)
        if self._protocol.state is State.OPEN:
            self._cut_frames(data)
        else:
            self._feed(data)
        if self._frames:
            frames, self._frames = self._frames, []
            self._sink.on_frames(frames)
        self._write()

    def eof_received(self) -> bool:
        """Note that the peer will send no more; False lets asyncio close."""
        self._protocol.receive_eof()
        self._handle_events()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end, once."""
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        self._protocol.receive_eof()
        if not self.opened.done():
            reason = explain(exc) if exc else "the peer closed before the handshake ended"
            self.opened.set_exception(ExchangeUnavailable(reason))
            return
        if not self.opened.cancelled() and self.opened.exception() is None:
            self._sink.on_closed(self._story(exc))

    def _feed_head(self, data: bytes) -> bytes:
        """Feed the handshake's answer alone, and return the frames that came in the same read."""
        end = data.find(_HEAD_END)
        if end < 0 and len(data) < _LONGEST_HEAD:
            self._rest = data
            return b""
        end = len(data) if end < 0 else end + len(_HEAD_END)
        self._feed(data[:end])
        return data[end:]

    def _cut_frames(self, data: bytes) -> None:
        at, end = 0, len(data)
        take = self._frames.append
        while end - at >= 2:
            length = data[at + 1]
            start = at + 2
            if length == 126:
                start = at + 4
                if end < start:
                    break
                length = data[at + 2] << 8 | data[at + 3]
            elif length == 127:
                start = at + 10
                if end < start:
                    break
                length = int.from_bytes(data[at + 2 : start], "big")
            elif length > 127:
                self._feed(data[at:])  # masked, which no server may do: the library knows what to answer
                return
            if length > self._max_bytes:
                self._feed(data[at:])
                return
            stop = start + length
            if stop > end:
                break
            head = data[at]
            if (head == _FINAL_TEXT or head == _FINAL_BINARY) and not self._fragments:
                take(data[start:stop])
            else:
                self._feed(data[at:stop])
                if self._protocol.state is not State.OPEN:
                    self._feed(data[stop:])
                    return
            at = stop
        self._rest = data[at:]

    def _feed(self, data: bytes) -> None:
        if data:
            self._protocol.receive_data(data)
            self._handle_events()

    def _handle_events(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._on_response()
            elif not isinstance(event, Frame):
                continue  # a request, which only servers receive
            elif event.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
                self._fragments.append(bytes(event.data))
                if event.fin:
                    self._frames.append(b"".join(self._fragments))
                    self._fragments = []
            elif event.opcode is Opcode.PONG:
                self._sink.on_pong(bytes(event.data))
        if self._protocol.handshake_exc is not None and not self.opened.done():
            self._on_response()

    def _on_response(self) -> None:
        if self.opened.done():
            return
        error = self._protocol.handshake_exc
        if error is None:
            self.opened.set_result(None)
        elif isinstance(error, InvalidStatus):
            response = error.response
            reason = f"the handshake was refused: HTTP {response.status_code} {response.reason_phrase}"
            headers = response.headers
            said = refused(reason, response.status_code, headers.get("Retry-After"), headers.get("Date"))
            self.opened.set_exception(said)
        else:
            self.opened.set_exception(ExchangeUnavailable(f"the handshake failed: {error}"))

    def _write(self) -> None:
        assert self._transport is not None
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()  # TLS cannot be half-closed
        if self._cut_timer is None and self._protocol.close_expected():
            self._cut_timer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self.cut)

    def _story(self, exc: Exception | None) -> str:
        if isinstance(self._protocol.close_exc, WebSocketException) and self._protocol.close_rcvd is not None:
            return str(self._protocol.close_exc)
        if self._protocol.parser_exc is not None and not isinstance(self._protocol.parser_exc, EOFError):
            return f"protocol error: {self._protocol.parser_exc}"
        return explain(exc) if exc else str(self._protocol.close_exc)


async def connect(endpoint: Endpoint, sink: Sink) -> WebSocket:
    """Open a WebSocket; see `transport.Connect`.

    Raises:
        ExchangeUnavailable: With the reason; try again with backoff.
    """
    parts = urlsplit(endpoint.url)
    host = parts.hostname or ""
    assert parts.scheme == "wss", "the settings allow no other scheme"
    loop = asyncio.get_running_loop()
    socket: WebSocket | None = None
    try:
        async with asyncio.timeout(endpoint.connect_timeout_s):
            _, socket = await loop.create_connection(
                lambda: WebSocket(endpoint, sink),
                host,
                parts.port or 443,
                ssl=endpoint.tls,
                server_hostname=host,
                ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
            )
            await socket.opened
    except (OSError, TimeoutError) as error:
        if socket is not None:
            socket.cut()
        raise ExchangeUnavailable(f"{host}: {explain(error)}") from None
    except (ExchangeUnavailable, asyncio.CancelledError):
        if socket is not None:
            socket.cut()
        raise
    return socket
