"""The fast shell: picows, a WebSocket client in Cython. Only importer of picows (pip install 'k2ray[picows]').

picows makes an enum member each time that a frame is asked for its kind, which costs more than all else here. So a
final frame above 125 bytes, which no control frame may be, is taken as a message unasked: where a server breaks the
protocol in such a frame, it ends in the dead letters instead of closing the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from urllib.parse import urlsplit

from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSHandshakeError,
    WSInvalidStatusError,
    WSListener,
    WSMsgType,
    WSParsedURL,
    WSProtocolError,
    WSTransport,
    ws_connect,
)

from k2ray.errors import ExchangeUnavailable
from k2ray.feed.transport import Endpoint, Sink, explain, refused

READ_BYTES = 262_144
"""First size of the read buffer: some 1,500 trades a turn of the event loop."""

CLOSE_TIMEOUT_S = 3.0
"""How long the peer may take to finish a close; after that the connection is cut."""

_LARGEST_CONTROL_FRAME = 125

# Bound once: an attribute of this enum costs 0.2 us.
_TEXT, _BINARY, _CONTINUATION = WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION
_PING, _PONG, _CLOSE = WSMsgType.PING, WSMsgType.PONG, WSMsgType.CLOSE


class _Listener(WSListener):
    """Collects the messages of one read and hands them over together."""

    def __init__(self, sink: Sink, max_bytes: int) -> None:
        super().__init__()
        self._sink = sink
        self._max_bytes = max_bytes
        self._frames: list[bytes] = []
        self._fragments: list[bytes] = []
        self._fragment_bytes = 0
        self._transport: WSTransport | None = None
        self._cut_timer: asyncio.TimerHandle | None = None
        self._reason = ""

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.payload_size > _LARGEST_CONTROL_FRAME and frame.fin and not self._fragments:
            self._frames.append(frame.get_payload_as_bytes())
        else:
            self._on_other_frame(transport, frame)
        if frame.last_in_buffer and self._frames:
            self._deliver()

    def _on_other_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            raise WSProtocolError(WSCloseCode.PROTOCOL_ERROR, "reserved bits must be 0")
        if kind in (_TEXT, _BINARY, _CONTINUATION):
            if frame.fin and kind is not _CONTINUATION and not self._fragments:
                self._frames.append(frame.get_payload_as_bytes())
            else:
                self._add_fragment(kind, frame.get_payload_as_bytes(), frame.fin)
        elif kind is _PONG:
            self._sink.on_pong(frame.get_payload_as_bytes())
        elif kind is _PING:
            # Not picows' own answer: it would hide a ping that ends a read, and with it the end of the read.
            transport.send_pong(frame.get_payload_as_bytes())
        elif kind is _CLOSE:
            self._reason = f"received {int(frame.get_close_code().value)} {frame.get_close_reason() or ''}".rstrip()
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            self.cut_soon()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        self._deliver()
        self._ending = asyncio.ensure_future(self._end(transport))

    async def _end(self, transport: WSTransport) -> None:
        reason = self._reason or "the peer closed without a close frame"
        try:
            await transport.wait_disconnected()
        except WSError as error:
            reason = f"protocol error: {error}"
        self._sink.on_closed(reason)

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake; see `Transport`."""
        if self._transport is not None and not self._transport.is_disconnected:
            self._reason = self._reason or f"sent {code} {reason}".rstrip()
            self._transport.send_close(WSCloseCode(code), reason.encode())
            self.cut_soon()

    def cut_soon(self) -> None:
        """Cut the connection if the close has not ended by itself in time."""
        if self._cut_timer is None:
            self._cut_timer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self.cut)

    def cut(self) -> None:
        """Drop the connection; see `Transport`."""
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    def send_text(self, text: bytes) -> None:
        """Send a text message; see `Transport`."""
        if self._transport is not None and not self._transport.is_disconnected:
            self._transport.send(_TEXT, text)

    def ping(self, payload: bytes) -> None:
        """Send a ping; see `Transport`."""
        if self._transport is not None and not self._transport.is_disconnected:
            self._transport.send_ping(payload)

    def _add_fragment(self, kind: WSMsgType, payload: bytes, final: bool) -> None:
        """Check and put together what picows hands over as it comes."""
        if (kind is _CONTINUATION) != bool(self._fragments):
            raise WSProtocolError(WSCloseCode.PROTOCOL_ERROR, "a continuation without a start, or a start within one")
        self._fragments.append(payload)
        self._fragment_bytes += len(payload)
        if self._fragment_bytes > self._max_bytes:
            raise WSProtocolError(WSCloseCode.MESSAGE_TOO_BIG, f"a message of more than {self._max_bytes} bytes")
        if final:
            self._frames.append(b"".join(self._fragments))
            self._fragments, self._fragment_bytes = [], 0

    def _deliver(self) -> None:
        if self._frames:
            frames, self._frames = self._frames, []
            self._sink.on_frames(frames)


async def connect(endpoint: Endpoint, sink: Sink) -> _Listener:
    """Open a WebSocket; see `transport.Connect`.

    Raises:
        ExchangeUnavailable: With the reason; try again with backoff.
    """
    host = urlsplit(endpoint.url).hostname
    made: list[socket.socket] = []

    async def make_socket(url: WSParsedURL) -> socket.socket:
        made.append(await _connected_socket(url.host, url.port))
        return made[0]

    try:
        async with asyncio.timeout(endpoint.connect_timeout_s):
            _, listener = await ws_connect(
                lambda: _Listener(sink, endpoint.max_frame_bytes),
                endpoint.url,
                ssl_context=endpoint.tls,
                websocket_handshake_timeout=endpoint.connect_timeout_s,
                enable_auto_pong=False,
                max_frame_size=endpoint.max_frame_bytes,
                max_redirects=0,
                read_buffer_init_size=READ_BYTES,
                socket_factory=make_socket,
                use_aiofastnet=False,
                ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
            )
    except WSInvalidStatusError as error:
        answer = error.response
        said = f"{host}: the handshake was refused: {error}"
        if answer is None:
            raise ExchangeUnavailable(said) from None
        headers = answer.headers
        raise refused(said, int(answer.status), headers.get("Retry-After"), headers.get("Date")) from None
    except WSHandshakeError as error:
        raise ExchangeUnavailable(f"{host}: the handshake failed: {error}") from None
    except (OSError, TimeoutError, WSError) as error:
        raise ExchangeUnavailable(f"{host}: {explain(error)}") from None
    except asyncio.CancelledError:
        # picows goes on by itself with a handshake that nobody waits for; the end of the stream ends it.
        for item in made:
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
        raise
    if not isinstance(listener, _Listener):
        raise ExchangeUnavailable(f"{host}: the peer closed before the handshake ended")
    return listener


async def _connected_socket(host: str, port: int) -> socket.socket:
    """Connect to the first address of `host` that answers."""
    loop = asyncio.get_running_loop()
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        attempt = socket.socket(family, kind, protocol)
        attempt.setblocking(False)
        try:
            await loop.sock_connect(attempt, address)
        except OSError as error:
            attempt.close()
            failure = error
        except asyncio.CancelledError:
            attempt.close()
            raise
        else:
            return attempt
    raise failure
