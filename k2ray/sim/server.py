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

from k2ray.sim.certificates import CertificateFiles
from k2ray.sim.connection import Connection
from k2ray.sim.http import HttpHandler
from k2ray.sim.limits import CONNECTS_WINDOW_S, Limits, SlidingWindow

ANSWER_S = 0.1
"""Between an outage's request and the outage."""


class Server:
    """Listens, and knows the living connections.

    Args:
        handler: Answers plain HTTP requests.
        subscribed: Called when a connection's streams change.
        certificates: The files to serve with.
        limits: How clients are treated.
        now_us: The exchange's clock.
    """

    def __init__(
        self,
        handler: HttpHandler,
        subscribed: Callable[[Connection], None],
        certificates: CertificateFiles,
        limits: Limits,
        now_us: Callable[[], int],
    ) -> None:
        self.handler = handler
        self.subscribed = subscribed
        self.certificates = certificates
        self.limits = limits
        self.now_us = now_us
        self.connections: dict[int, Connection] = {}
        self.counters: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._address = ("", 0)
        self._connects: dict[str, SlidingWindow] = {}
        self._server: asyncio.Server | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._outage: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port."""
        self.use_certificate("right")
        port = await self._listen(host, port)
        self._keeper = asyncio.get_running_loop().create_task(self._keep_alive())
        return port

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._keeper is None:
            return
        self._keeper.cancel()
        self._keeper = None
        if self._outage is not None:
            self._outage.cancel()
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for connection in list(self.connections.values()):
            if connection.half_open:
                connection.abort()
            else:
                connection.close(1001, "the simulator stops")
        for _ in range(20):  # a client gets a moment to answer the close frame
            if not self.connections:
                break
            await asyncio.sleep(0.01)
        self._abort_all()
        if server is not None:
            await server.wait_closed()

    def go_away(self, seconds: float) -> None:
        """Be unreachable for a while: connections are dropped, nobody listens; then listen on the same port again."""
        if self._outage is None or self._outage.done():
            self._outage = asyncio.get_running_loop().create_task(self._stay_away(seconds))

    async def _stay_away(self, seconds: float) -> None:
        await asyncio.sleep(ANSWER_S)  # whoever asked for it gets an answer
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self.counters["outages"] += 1
        self._abort_all()
        await asyncio.sleep(seconds)
        await self._listen(*self._address)

    async def _listen(self, host: str, port: int) -> int:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self, next(self._numbers)), host, port, ssl=self._context
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        self._address = (host, bound)
        return bound

    def _abort_all(self) -> None:
        for connection in list(self.connections.values()):
            connection.abort()

    def may_connect(self, peer: str) -> bool:
        """Count a WebSocket of this address; false if it had too many lately."""
        window = self._connects.setdefault(peer, SlidingWindow(self.limits.connects_per_5_min, CONNECTS_WINDOW_S))
        if window.take(time.monotonic()):
            return True
        self.counters["connects_refused"] += 1
        return False

    def use_certificate(self, which: str) -> None:
        """Serve new connections with the certificate `right`, `other_host` or `untrusted`."""
        file = self.certificates.server if which == "right" else getattr(self.certificates, which)
        self._context.load_cert_chain(file)

    def websockets(self) -> list[Connection]:
        """Return the connections that take frames."""
        return [connection for connection in self.connections.values() if connection.is_websocket]

    def opened(self, connection: Connection) -> None:
        """Note a new connection; during an outage there is none: its handshake had begun before."""
        if self._server is None:
            connection.abort()
            return
        self.connections[connection.number] = connection
        self.counters["connections_opened"] += 1

    def lost(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.pop(connection.number, None)

    async def _keep_alive(self) -> None:
        limits = self.limits
        notice_s = limits.shutdown_notice_s or limits.lifetime_s
        pause = max(0.02, min(1.0, limits.ping_interval_s / 4, limits.lifetime_s / 50, notice_s / 4))
        while True:
            await asyncio.sleep(pause)
            now = time.monotonic()
            for connection in self.websockets():
                connection.keep_alive(now)
