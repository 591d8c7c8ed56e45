"""The backfill actor: gives a `BackfillSession` a process, Kafka clients, the shared request budget, and a drain.

Next in the flow: `k2ray/backfill/session.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

from actors.child import Child
from actors.limits import Permits
from actors.line import SupervisorLine
from actors.rates import Rate
from actors.reconnects import Reconnects
from actors.schemas import encoder_of, keep_learning
from k2ray.backfill.committed import CommittedLedgers
from k2ray.backfill.recorder import gap_recorder
from k2ray.backfill.session import BackfillSession
from k2ray.clock import SystemClock
from k2ray.errors import BadInput, SupervisorUnavailable, TryAgain
from k2ray.feed.transport import tls_context
from k2ray.lake.catalog import open_catalog
from k2ray.log.consumer import LogReader
from k2ray.log.partition import share_of
from k2ray.log.producer import LogProducer
from k2ray.settings import Settings

TURN_S = 1.0
RETRY_S = 1.0
WEIGHT = "weight"


class ExchangeBudget:
    """The request weight of one exchange, shared by all actors.

    Args:
        permits: Asks the supervisor.
        exchange: Whose weight.
    """

    def __init__(self, permits: Permits, exchange: str) -> None:
        self._permits = permits
        self._exchange = exchange

    async def permit(self, amount: int) -> None:
        """Wait until so much is granted."""
        while True:
            try:
                return await self._permits.permit(self._exchange, WEIGHT, amount)
            except BadInput:
                # More than the reserve that this process has while no supervisor answers: wait for one.
                await asyncio.sleep(RETRY_S)

    async def ban(self, for_s: float) -> None:
        """Tell all actors to wait."""
        await self._permits.ban(self._exchange, WEIGHT, for_s)

    async def observe(self, used: int) -> None:
        """Tell what the exchange counts."""
        await self._permits.observe(self._exchange, WEIGHT, used)


async def follow_feeds(
    line: SupervisorLine, settings: Settings, exchange: str, connected_anew: Callable[[Iterable[str]], None]
) -> None:
    """Tell whose feed was away, until cancelled: the supervisor knows it from the health reports that it gathers.

    Args:
        line: To the supervisor.
        settings: Say which connection has which symbols.
        exchange: Whose feeds.
        connected_anew: Is told the symbols of a connection.
    """
    reconnects = Reconnects(exchange)
    chosen, partitions = settings.exchanges.enabled()[exchange], settings.kafka.partitions
    while True:
        try:
            found = reconnects.note(await line.call("status"))
        except SupervisorUnavailable:
            found = set()  # the next answer tells as much
        for index in found:
            connected_anew(share_of(exchange, chosen.symbols, partitions, chosen.connections, index))
        await asyncio.sleep(settings.backfill.interval_s)


class BackfillActor(Child):
    """Closes the gaps of one exchange; named `backfill:<exchange>#<generation>`."""

    def __init__(self, name: str, settings_json: str) -> None:
        super().__init__(name, settings_json)
        (self._exchange,) = self.name.owns
        self._budget = ExchangeBudget(Permits(self.layout.namespace, self.settings), self._exchange)
        self._encoder = encoder_of(self.layout.namespace, self.settings)
        self._session: BackfillSession | None = None
        self._rate = Rate()

    async def main(self) -> None:
        """Close gaps until drained; then flush what was produced last."""
        producer = LogProducer(self.bootstrap, client_id=self.name.logical, spool=None, settings=self.settings.kafka)
        reader = LogReader(self.bootstrap, options=self.settings.kafka.options)
        learning = asyncio.create_task(keep_learning(self._encoder, self.settings))
        try:
            session = await self._open(producer, reader)
            if session is not None:
                self._session = session
                await self._work(session)
        finally:
            learning.cancel()
            await asyncio.to_thread(producer.close, self.settings.supervision.drain_timeout_s / 2)
            await asyncio.to_thread(reader.close)

    async def _work(self, session: BackfillSession) -> None:
        line = SupervisorLine(self.layout.namespace)
        following = follow_feeds(line, self.settings, self._exchange, session.connected_anew)
        working = {asyncio.create_task(session.run()), asyncio.create_task(following)}
        try:
            ended: set[asyncio.Task[None]] = set()
            while not ended and not self.stopping.is_set():
                self.turn()
                ended, _ = await asyncio.wait(working, timeout=TURN_S, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                await task
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        flushed = await asyncio.to_thread(session.finish, self.settings.supervision.drain_timeout_s / 2)
        self.log.info("drained", flushed=flushed)

    async def _open(self, producer: LogProducer, reader: LogReader) -> BackfillSession | None:
        """Open the catalog, waiting for it while it is away; None if drained meanwhile."""
        tls = tls_context(self.settings.tls.ca_file, self.settings.tls.crl_file)
        while not self.stopping.is_set():
            self.turn()
            try:
                catalog = await asyncio.to_thread(open_catalog, self.settings, self.layout)
            except TryAgain as error:
                self.log.warning("try again", reason=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            clock = SystemClock()
            return BackfillSession(
                self.settings,
                self._exchange,
                producer,
                self._encoder,
                reader,
                CommittedLedgers(catalog, self.settings, self._exchange, clock),
                gap_recorder(catalog, self.settings, self.layout, self._exchange, clock),
                self._budget,
                tls,
                clock,
            )
        return None

    def report(self) -> dict[str, Any]:
        """Return the session's numbers, what it is filling, and what is proven."""
        if self._session is None:
            return {"trouble": "not started yet"}
        status = dataclasses.asdict(self._session.status())
        return {**status, "rate": self._rate.note(status["rows"], time.monotonic())}
