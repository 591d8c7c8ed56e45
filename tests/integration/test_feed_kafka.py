"""A feed between the simulated exchange and a real Kafka: what came over TLS is in the log, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k2ray.clock import Clock
from k2ray.feed.session import FeedSession
from k2ray.feed.status import FeedStatus
from k2ray.log.consumer import LogReader, Position
from k2ray.log.producer import LogProducer
from k2ray.log.spool import Spool
from k2ray.log.topics import dead_letter_topic, ensure_topics, topic_name
from k2ray.settings import Settings
from k2ray.sim.exchange import SimulatedExchange
from k2ray.sim.settings import Address, SimSettings
from k2ray.wire.codec import decode
from tests.support.clocks import FastClock
from tests.support.kafka import TestBroker, read_all

pytestmark = pytest.mark.integration

SYMBOLS = ("BTCUSDT", "ETHUSDT", "BTCFDUSD")
TOPICS = {"trade": "trades", "aggTrade": "agg_trades", "bookTicker": "quotes"}


async def until(look: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.01)


class World:
    """An exchange, a feed and a producer, all in this loop; the broker is a real one."""

    def __init__(
        self,
        broker: TestBroker,
        folder: Path,
        *,
        transport: str = "websockets",
        clock: Clock | None = None,
        **feed: Any,
    ) -> None:
        self.broker, self.folder, self.transport, self.clock, self.feed = broker, folder, transport, clock, feed

    @contextlib.asynccontextmanager
    async def running(self, **sim: Any) -> AsyncIterator[World]:
        self.truth = self.folder / "truth.parquet"
        self.exchange = SimulatedExchange(
            SimSettings(symbols=SYMBOLS, truth=self.truth, ca_dir=self.folder / "ca", **sim)
        )
        self.address: Address = await self.exchange.start()
        self.settings = Settings.model_validate(
            {
                "tls": {"ca_file": self.address.ca_file},
                "exchanges": {
                    "binance": {
                        "ws_url": self.address.ws_url,
                        "rest_url": self.address.rest_url,
                        "channels": ["trades", "agg_trades", "quotes"],
                        "symbols": SYMBOLS,
                    }
                },
                "feed": {"transport": self.transport, "backoff_initial_s": 0.05, "linger_idle_s": 0.05, **self.feed},
                "kafka": {
                    "topic_prefix": self.broker.prefix(),
                    "bootstrap_servers": self.broker.bootstrap,
                    "partitions": 2,
                },
            }
        )
        await asyncio.to_thread(ensure_topics, self.broker.bootstrap, self.settings)
        self.spool = Spool(self.folder / "spool", 2**30)
        self.producer = LogProducer(
            self.broker.bootstrap, client_id="feed-test", spool=self.spool, settings=self.settings.kafka
        )
        self.session = FeedSession(self.settings, "binance", 0, self.producer, self.clock)
        run = asyncio.create_task(self.session.run())
        context = ssl.create_default_context(cafile=self.address.ca_file)
        self.client = httpx.AsyncClient(verify=context, trust_env=False)  # kept open: certificates go wrong on purpose
        try:
            yield self
            assert await asyncio.wait_for(self.session.drain(), 30), "the flush ended"
            await asyncio.wait_for(run, 5)
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
            await self.client.aclose()
            await asyncio.to_thread(self.producer.close, 5)
            await self.exchange.stop()

    async def fault(self, **request: Any) -> None:
        answer = await self.client.post(f"{self.address.rest_url}/_sim/fault", json=request)
        assert answer.status_code == 200, answer.text

    async def received(self, more: int) -> None:
        """Wait until `more` rows more came."""
        start = self.session.status().rows
        await until(lambda: self.session.status().rows >= start + more, f"{more} rows more")

    async def dead_letters(self, number: int) -> None:
        """Wait until this many frames are dead letters."""
        await until(lambda: self.session.status().dead_letters >= number, f"{number} dead letters")

    def stored(self, channel: str) -> dict[str, list[dict[str, Any]]]:
        """Return symbol -> the rows in Kafka, in the order of their partition."""
        topic = topic_name(self.settings.kafka.topic_prefix, "crypto", channel, "binance")
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        reader = LogReader(self.broker.bootstrap)
        try:
            keys = [(topic, partition) for partition in range(self.settings.kafka.partitions)]
            ends = {key: reader.watermarks(key)[1] for key in keys}
            reader.assign({key: Position(0) for key in keys if ends[key]})
            left = sum(ends.values())
            while left:
                records = reader.poll(10_000, 20.0)
                assert records, f"{left} records of {topic} do not come"
                left -= len(records)
                for record in records:
                    batch = decode(record.value, record.headers)
                    assert isinstance(batch, pa.RecordBatch)
                    for row in batch.to_pylist():
                        found[row["symbol"]].append(row)
        finally:
            reader.close()
        return found

    def happened(self, stream: str) -> dict[tuple[str, int], dict[str, Any]]:
        """Return (symbol, id) -> the truth's row; the exchange must be stopped."""
        rows = pq.read_table(self.truth, filters=[("channel", "=", stream)]).to_pylist()
        return {(row["symbol"], row["id"]): row for row in rows}


@pytest.mark.parametrize("transport", ["websockets", "picows"])
async def test_every_frame_that_was_sent_is_in_kafka_with_every_field(
    broker: TestBroker, tmp_path: Path, transport: str
) -> None:
    world = World(broker, tmp_path, transport=transport)
    async with world.running(rate=3_000, frames=9_000, seed=5):
        await until(lambda: not world.exchange.generating, "the market's end")
        await until(lambda: world.session.status().gathered == 0, "all gathered frames published")
    for stream, channel in TOPICS.items():
        truth, stored = world.happened(stream), world.stored(channel)
        assert set(stored) == set(SYMBOLS)
        for symbol, rows in stored.items():
            ids = [row["source_sequence"] for row in rows]
            sent = [number for name, number in truth if name == symbol and number >= ids[0]]
            assert ids == sorted(sent), "all from the first on, each once, in order"
            assert len(ids) > 500
            for before, row in zip([None, *rows], rows, strict=False):
                check(stream, row, truth[symbol, row["source_sequence"]], before)


def check(stream: str, row: dict[str, Any], true: dict[str, Any], before: dict[str, Any] | None) -> None:
    assert row["currency"] == ("FDUSD" if row["symbol"] == "BTCFDUSD" else "USDT")
    if stream == "bookTicker":
        for name in ("bid_price", "bid_quantity", "ask_price", "ask_quantity"):
            assert row[name] == Decimal(true[name])
        assert row["sequence_from"] == (before["source_sequence"] if before else true["id"] - 1)
        return
    assert (row["price"], row["quantity"]) == (Decimal(true["price"]), Decimal(true["quantity"]))
    assert row["side"] == ("SELL" if true["is_buyer_maker"] else "BUY")
    assert round(row["timestamp"].timestamp() * 1_000_000) == true["trade_us"]
    assert row["sequence_from"] == true["id"] - 1
    if stream == "aggTrade":
        extra = dict(row["vendor_data"])
        first = int(extra["f"])
        event = int(extra["E"]) if "E" in extra else true["trade_us"]
        assert (first, int(extra.get("l", first))) == (true["first_id"], true["last_id"])
        assert event == true["event_us"]


async def test_a_malformed_frame_is_a_dead_letter_in_kafka_and_its_neighbours_go_on(
    broker: TestBroker, tmp_path: Path
) -> None:
    """Trap 3: undecodable records were logged, skipped and committed."""
    world = World(broker, tmp_path)
    async with world.running(rate=1_000):
        await world.received(500)
        for number, how in enumerate(("json", "price", "missing", "utf8"), start=1):
            await world.fault(fault="malformed", how=how, symbol="ETHUSDT")
            # Asked for together, two faults may alter the same frame.
            await world.dead_letters(number)
        await world.fault(fault="truncated", how="json", symbol="BTCUSDT")
        await world.dead_letters(5)
        await world.received(500)
        assert world.session.status().reconnects == 0
    topic = dead_letter_topic(world.settings.kafka.topic_prefix, "binance")
    letters = read_all(broker.bootstrap, topic, 5, timeout_s=5)
    assert len(letters) == 5
    for letter in letters:
        headers = dict(letter.headers)
        assert letter.value
        assert headers["reason"]
        assert headers["source"] == b"feed:binance:0/1"
        assert headers["exchange"] == b"binance"
    stored = world.stored("trades")
    for symbol, missing in (("ETHUSDT", 4), ("BTCUSDT", 1), ("BTCFDUSD", 0)):
        ids = [row["source_sequence"] for row in stored[symbol]]
        assert ids[-1] - ids[0] + 1 - len(ids) == missing, "only the bad ones are missing, and the gap shows"


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "close", "how": "frame"},
        {"fault": "close", "how": "abort"},
        {"fault": "half_open"},
        {"fault": "oversized"},
        {"fault": "truncated", "how": "socket"},
    ],
    ids=["close", "abort", "half open", "oversized", "cut amid a frame"],
)
async def test_a_broken_connection_is_replaced_and_what_arrived_is_kept(
    broker: TestBroker, tmp_path: Path, fault: dict[str, Any]
) -> None:
    """Trap 7: also against a peer that stops answering."""
    world = World(broker, tmp_path, clock=FastClock(10), stale_after_s=5, pong_timeout_s=5)
    async with world.running(rate=2_000):
        await world.received(1_000)
        await world.fault(**fault)
        await until(lambda: _replaced(world.session.status()), "the broken connection is replaced")
        await until(lambda: world.session.status().ready, "the new connection")
        await world.received(1_000)
    for symbol, rows in world.stored("trades").items():
        ids = [row["source_sequence"] for row in rows]
        assert ids == sorted(set(ids)), f"{symbol}: nothing twice, nothing out of order"


def _replaced(status: FeedStatus) -> bool:
    return status.reconnects + sum(status.rotations.values()) == 1


async def test_a_wrong_certificate_is_never_accepted_and_the_feed_recovers(broker: TestBroker, tmp_path: Path) -> None:
    world = World(broker, tmp_path)
    async with world.running(rate=500):
        await world.received(100)
        await world.fault(fault="wrong_certificate", how="other_host", seconds=1.0)
        await world.fault(fault="close")
        await until(lambda: "certificate" in world.session.status().last_reason, "the refusal, with its reason")
        await until(lambda: world.session.status().state == "open", "the right certificate again")
        await world.received(100)


async def test_the_loop_answers_while_frames_pour_in(broker: TestBroker, tmp_path: Path) -> None:
    """A feed's health is asked in the same process: one turn of the loop must stay short."""
    world = World(broker, tmp_path)
    longest = 0.0
    async with world.running(rate=30_000, quotes_per_trade=1.0):
        await world.received(1_000)
        deadline_s = time.monotonic() + 2
        while time.monotonic() < deadline_s:
            asked = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - asked)
            await asyncio.sleep(0.005)
        assert world.session.status().loop_age_s < 1
    assert longest < 0.5
