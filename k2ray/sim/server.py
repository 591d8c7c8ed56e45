"""The simulator's one TLS port, and the connections that live on it.

Next in the flow: `exchange.py`, which feeds the connections.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from k2ray.sim.certificates import CertificateFiles
from k2ray.sim.connection import Connection
from k2ray.sim.http import HttpHandler


@dataclass(frozen=True)
class Limits:
    """How the server treats its clients.

    Attributes:
        ping_interval_s: Between two pings; Binance's 20 s.
        pong_timeout_s: A client whose pong is this late is dropped; Binance's 60 s.
        client_buffer_bytes: More than this waiting for a slow client disconnects it.
    """

    ping_interval_s: float = 20.0
    pong_timeout_s: float = 60.0
    client_buffer_bytes: int = 67_108_864


class Server:
    """Listens, and knows the living connections.

    Args:
        handler: Answers plain HTTP requests.
        subscribed: Called when a connection's streams change.
        certificates: The files to serve with.
        limits: How clients are treated.
    """

    def __init__(
        self,
        handler: HttpHandler,
        subscribed: Callable[[Connection], None],
        certificates: CertificateFiles,
        limits: Limits,
    ) -> None:
        self.handler = handler
        self.subscribed = subscribed
        self.certificates = certificates
        self.limits = limits
        self.connections: dict[int, Connection] = {}
        self.counters: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server: asyncio.Server | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port."""
        self.use_certificate("right")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self, next(self._numbers)), host, port, ssl=self._context
        )
        self._keeper = loop.create_task(self._keep_alive())
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is None:
            return
        self._server.close()
        if self._keeper is not None:
            self._keeper.cancel()
        for connection in list(self.connections.values()):
            if connection.half_open:
                connection.abort()
            else:
                connection.close(1001, "the simulator stops")
        for _ in range(20):  # a client gets a moment to answer the close frame
            if not self.connections:
                break
            await asyncio.sleep(0.01)
        for connection in list(self.connections.values()):
            connection.abort()
        await self._server.wait_closed()
        self._server = None

    def use_certificate(self, which: str) -> None:
        """Serve new connections with the certificate `right`, `other_host` or `untrusted`."""
        file = self.certificates.server if which == "right" else getattr(self.certificates, which)
        self._context.load_cert_chain(file)

    def websockets(self) -> list[Connection]:
        """Return the connections that take frames."""
        return [connection for connection in self.connections.values() if connection.is_websocket]

    def opened(self, connection: Connection) -> None:
        """Note a new connection."""
        self.connections[connection.number] = connection
        self.counters["connections_opened"] += 1

    def lost(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.pop(connection.number, None)

    async def _keep_alive(self) -> None:
        pause = min(1.0, self.limits.ping_interval_s / 4)
        while True:
            await asyncio.sleep(pause)
            now = time.monotonic()
            for connection in self.websockets():
                connection.keep_alive(now)
