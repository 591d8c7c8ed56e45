"""Feeds between a simulated exchange (a process of its own) and a real Kafka, and a judge that compares ids.

What the table would hold is what the ledger makes of the log: it is asked here with the very batches that are in Kafka,
partition by partition, as the writer would.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from k2ray import model
from k2ray.clock import Clock
from k2ray.feed.session import FeedSession, Permit
from k2ray.feed.status import FeedStatus
from k2ray.ledger.gaps import Gap
from k2ray.ledger.ledger import Ledger
from k2ray.ledger.params import LedgerParams
from k2ray.log.consumer import LogReader, Position
from k2ray.log.producer import LogProducer
from k2ray.log.spool import Spool
from k2ray.log.topics import ensure_topics, topic_name
from k2ray.settings import Settings
from k2ray.wire.codec import decode
from tests.support.kafka import TestBroker
from tests.support.sim import Sim

SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT")
STREAM_OF = {"trades": "trade", "quotes": "bookTicker", "agg_trades": "aggTrade"}


async def until(look: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.01)


@dataclass
class Judged:
    """What the log holds of a channel, judged by the ledger.

    Attributes:
        accepted: Symbol -> ids that are new, in the log's order.
        duplicates: Rows that the ledger drops.
        gaps: What it says is missing.
        sent: Symbol -> ids that the exchange made, from the first accepted one to the last accepted one.
    """

    accepted: dict[str, list[int]]
    duplicates: int
    gaps: list[Gap]
    sent: dict[str, list[int]]

    @property
    def lost(self) -> dict[str, list[int]]:
        """Ids that the exchange made and that are not there."""
        found = {symbol: sorted(set(ids) - set(self.accepted[symbol])) for symbol, ids in self.sent.items()}
        return {symbol: ids for symbol, ids in found.items() if ids}

    @property
    def doubled(self) -> int:
        """Ids that would be in the table more than once."""
        return sum(len(ids) - len(set(ids)) for ids in self.accepted.values())

    @property
    def missing(self) -> dict[str, list[int]]:
        """Ids in the ledger's gaps."""
        found: dict[str, list[int]] = defaultdict(list)
        for gap in self.gaps:
            found[gap.symbol] += range(gap.first_id, gap.last_id + 1)
        return dict(found)


class FeedWorld:
    """One or more feeds in this event loop, each with a producer of its own.

    Args:
        broker: A real one.
        folder: For spools.
        sim: The exchange.
        exchange: Overrides of the exchange's settings.
        overlap_s: Of rotations.
        clock: Of the feeds; None: the machine's.
        permit: What each connect waits for.
        kafka: Overrides of the Kafka settings.
        spool_bytes: Bound of each spool.
        tls: Overrides of the TLS settings.
        feed: Overrides of the feeds' settings.
    """

    def __init__(
        self,
        broker: TestBroker,
        folder: Path,
        sim: Sim,
        *,
        exchange: dict[str, Any] | None = None,
        overlap_s: float = 0.3,
        clock: Clock | None = None,
        permit: Permit | None = None,
        kafka: dict[str, Any] | None = None,
        spool_bytes: int = 2**30,
        tls: dict[str, Any] | None = None,
        **feed: Any,
    ) -> None:
        self.broker, self.folder, self.sim = broker, folder, sim
        self._clock, self._permit, self._overlap_s, self._spool_bytes = clock, permit, overlap_s, spool_bytes
        chosen = {
            "ws_url": sim.ws_url,
            "rest_url": sim.rest_url,
            "channels": ["trades", "quotes"],
            "symbols": list(SYMBOLS),
            **(exchange or {}),
        }
        self.settings = Settings.model_validate(
            {
                "tls": {"ca_file": str(sim.ca_file), **(tls or {})},
                "exchanges": {"binance": chosen},
                "feed": {"backoff_initial_s": 0.1, "backoff_max_s": 1, "linger_idle_s": 0.05, **feed},
                "kafka": {
                    "topic_prefix": broker.prefix(),
                    "bootstrap_servers": broker.bootstrap,
                    "partitions": 2,
                    **(kafka or {}),
                },
            }
        )
        self.sessions: list[FeedSession] = []
        self.producers: list[LogProducer] = []
        self._runs: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def running(self, *, wait: bool = True) -> AsyncIterator[FeedWorld]:
        """Start every feed that the settings ask for; drained and flushed at the end."""
        await asyncio.to_thread(ensure_topics, self.broker.bootstrap, self.settings)
        chosen = self.settings.exchanges.enabled()["binance"]
        try:
            for index in range(chosen.connections):
                for copy in range(1, chosen.redundancy + 1):
                    self.add(index, copy)
            if wait:
                await until(lambda: all(session.status().ready for session in self.sessions), "all feeds are ready")
            yield self
            flushed = await asyncio.gather(*(asyncio.wait_for(one.drain(30), 60) for one in self.sessions))
            assert all(flushed), "the flush ended"
            await asyncio.wait_for(asyncio.gather(*self._runs), 10)
        finally:
            for run in self._runs:
                run.cancel()
            await asyncio.gather(*self._runs, return_exceptions=True)
            await asyncio.gather(*(asyncio.to_thread(one.close, 5) for one in self.producers))

    def add(self, index: int, copy: int = 1) -> FeedSession:
        """Start one more feed."""
        name = f"feed-{index}-{copy}-{len(self.sessions)}"
        spool = Spool(self.folder / "spool" / name, self._spool_bytes)
        producer = LogProducer(self.broker.bootstrap, client_id=name, spool=spool, settings=self.settings.kafka)
        session = FeedSession(
            self.settings,
            "binance",
            index,
            producer,
            self._clock,
            copy=copy,
            permit=self._permit,
            overlap_s=self._overlap_s,
        )
        self.producers.append(producer)
        self.sessions.append(session)
        self._runs.append(asyncio.create_task(session.run()))
        return session

    @property
    def session(self) -> FeedSession:
        return self.sessions[0]

    @property
    def status(self) -> FeedStatus:
        return self.session.status()

    async def fault(self, fault: str, **params: Any) -> None:
        await asyncio.to_thread(self.sim.fault, fault, **params)

    async def received(self, more: int, session: FeedSession | None = None) -> None:
        """Wait until `more` rows more came."""
        one = session or self.session
        start = one.status().rows
        await until(lambda: one.status().rows >= start + more, f"{more} rows more")

    async def rotated(self, reason: str, count: int = 1) -> None:
        """Wait until so many rotations of this reason are complete and no connection is left over."""
        await until(lambda: self.status.rotations[reason] >= count, f"{count} rotations: {reason}")
        await until(lambda: not self.status.rotating and self.status.ready, "one connection, delivering")

    def judge(self, channel: str, truth: pa.Table) -> Judged:
        """Judge what is in Kafka; the feeds must have been drained.

        Args:
            channel: `trades` or another.
            truth: `Sim.truth_now()`.
        """
        topic = topic_name(self.settings.kafka.topic_prefix, "crypto", channel, "binance")
        ledger = Ledger(LedgerParams.for_table(model.CHANNELS[channel].table))
        accepted: dict[str, list[int]] = defaultdict(list)
        duplicates = 0
        reader = LogReader(self.broker.bootstrap)
        try:
            for partition in range(self.settings.kafka.partitions):
                key = (topic, partition)
                low, end = reader.watermarks(key)
                if low == end:
                    continue
                reader.assign({key: Position(low)})
                position = low
                while position < end:
                    records = reader.poll(10_000, 20.0)
                    assert records, f"{key} ends at {position}, below {end}"
                    for record in records:
                        position = record.offset + 1
                        batch = decode(record.value, record.headers)
                        assert isinstance(batch, pa.RecordBatch)
                        decision = ledger.decide(key, batch)
                        duplicates += decision.duplicates
                        kept = batch.filter(pa.array(decision.keep))
                        ids = kept.column("source_sequence").to_numpy()
                        codes = kept.column("symbol").indices.to_numpy()
                        for code, symbol in enumerate(kept.column("symbol").dictionary.to_pylist()):
                            accepted[symbol] += ids[codes == code].tolist()
        finally:
            reader.close()
        accepted = {symbol: ids for symbol, ids in accepted.items() if ids}
        return Judged(accepted, duplicates, ledger.gaps(), _sent(truth, STREAM_OF[channel], accepted))


def _sent(truth: pa.Table, stream: str, accepted: dict[str, list[int]]) -> dict[str, list[int]]:
    rows = truth.filter(pc.equal(truth.column("channel").cast(pa.string()), stream))
    symbols, ids = rows.column("symbol").cast(pa.string()), rows.column("id")
    found: dict[str, list[int]] = {}
    for symbol, numbers in accepted.items():
        between = pc.and_(pc.greater_equal(ids, min(numbers)), pc.less_equal(ids, max(numbers)))
        found[symbol] = ids.filter(pc.and_(pc.equal(symbols, symbol), between)).to_pylist()
    return found
