"""A real TLS WebSocket server for transport tests, byte for byte: it can do what no library would."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10

_ACCEPT = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(payload: bytes, opcode: int = TEXT, *, fin: bool = True) -> bytes:
    """Return an unmasked frame, as servers send them."""
    length = len(payload)
    if length < 126:
        size = bytes([length])
    elif length < 65_536:
        size = b"\x7e" + length.to_bytes(2, "big")
    else:
        size = b"\x7f" + length.to_bytes(8, "big")
    return bytes([opcode | (0x80 if fin else 0)]) + size + payload


def closing(code: int, reason: str = "") -> bytes:
    return frame(code.to_bytes(2, "big") + reason.encode(), CLOSE)


@dataclass
class Peer:
    """The server's side of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: bytes = b""
    received: list[tuple[int, bytes]] = field(default_factory=list)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def accept(self, extra: bytes = b"", *, read_head: bool = True) -> None:
        """Answer the handshake; `extra` goes out in the same write."""
        if read_head:
            self.head = await self.reader.readuntil(b"\r\n\r\n")
        key = next(
            line.split(b":", 1)[1].strip()
            for line in self.head.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key")
        )
        accept = base64.b64encode(hashlib.sha1(key + _ACCEPT.encode()).digest())
        await self.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + extra
        )

    async def read_frame(self) -> tuple[int, bytes]:
        """Read one masked frame of the client: (opcode, payload)."""
        head = await self.reader.readexactly(2)
        length = head[1] & 0x7F
        assert head[1] & 0x80, "clients must mask"
        if length == 126:
            length = int.from_bytes(await self.reader.readexactly(2), "big")
        elif length == 127:
            length = int.from_bytes(await self.reader.readexactly(8), "big")
        mask = await self.reader.readexactly(4)
        payload = await self.reader.readexactly(length)
        item = head[0] & 0x0F, bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self.received.append(item)
        return item

    async def read_until_end(self) -> None:
        """Read frames until the client is gone."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            while True:
                await self.read_frame()


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class Served:
    """A running server: its port and the peers so far."""

    port: int
    peers: list[Peer] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)


@contextlib.asynccontextmanager
async def serve(certificate: Path, script: Script, *, newest: ssl.TLSVersion | None = None) -> AsyncIterator[Served]:
    """Run `script` for each connection to a TLS server with this certificate (PEM with its key).

    Args:
        certificate: What it shows.
        script: What it does.
        newest: It speaks this version of TLS and no other.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if newest is not None:
        context.set_ciphers("ALL:@SECLEVEL=0")  # OpenSSL leaves old versions out otherwise
        context.minimum_version = context.maximum_version = newest
    context.load_cert_chain(certificate)
    served = Served(0)
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Peer(reader, writer)
        served.peers.append(peer)
        try:
            await script(peer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        except asyncio.CancelledError:
            pass
        except AssertionError as error:
            served.failures.append(error)
        finally:
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
    if served.failures:
        raise served.failures[0]
