"""A backfill with everything it touches, in one process: a made-up exchange behind httpx, a log in memory, a real table
and its writer. No socket, no Kafka, no Ray."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from k2ray.backfill.committed import CommittedLedgers
from k2ray.backfill.recorder import gap_recorder
from k2ray.backfill.session import BackfillSession
from k2ray.clock import SystemClock
from k2ray.lake.catalog import load_table, open_catalog
from k2ray.lake.writer import TableWriter
from k2ray.layout import DataDir
from k2ray.log.partition import partition_of
from k2ray.settings import Settings, load_settings
from k2ray.wire.codec import Headers
from k2ray.wire.encoder import ARROW
from tests.support.lake import NOON_US, MemoryLetters, MemoryLog, MemoryReader, trades

TOPIC = "market.crypto.trades.binance"
SYMBOLS = ("BTCUSDT", "ETHUSDT")
QUICK = {"grace_s": 0.1, "interval_s": 0.05, "prove_interval_s": 0.1, "retry_s": 0.1, "lost_after_answers": 2}


async def until(look: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.02)


@dataclass
class FakeExchange:
    """Answers Binance's REST about trades whose content follows from their ids, as `tests.support.lake.trades` has it.

    Attributes:
        newest: Symbol -> newest id.
        horizon: Ids below are forgotten.
        absent: Ids that it skips.
        strange: Ids whose values do not fit.
        replies: Statuses to give before anything else, each with headers; one a request.
        away: Whether connections are refused.
        asked: Paths, by how often.
        times: Monotonic time of each request.
    """

    newest: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SYMBOLS, 0))
    horizon: int = 0
    absent: set[int] = field(default_factory=set)
    strange: set[int] = field(default_factory=set)
    replies: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    away: bool = False
    asked: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    pages: list[tuple[int, int]] = field(default_factory=list)

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.answer)

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.times.append(time.monotonic())
        if self.away:
            raise httpx.ConnectError("connection refused")
        if self.replies:
            status, headers = self.replies.pop(0)
            return httpx.Response(status, headers=headers, json={"code": -1003, "msg": "no"})
        path, query = request.url.path, request.url.params
        self.asked[path] += 1
        used = {"x-mbx-used-weight-1m": str(sum(self.asked.values()))}
        return httpx.Response(200, headers=used, content=msgspec.json.encode(self._body(path, query)))

    def _body(self, path: str, query: httpx.QueryParams) -> Any:
        match path:
            case "/api/v3/exchangeInfo":
                return {"symbols": [{"symbol": symbol, "quoteAsset": "USDT"} for symbol in self.newest]}
            case "/api/v3/ticker/24hr":
                return [{"symbol": symbol, "lastId": newest or -1} for symbol, newest in self.newest.items()]
            case "/api/v3/historicalTrades":
                first, limit = int(query["fromId"]), int(query["limit"])
                self.pages.append((first, limit))
                ids = range(max(first, self.horizon), self.newest[query["symbol"]] + 1)
                return [self._trade(i) for i in ids if i not in self.absent][:limit]
        raise AssertionError(path)

    def _trade(self, trade_id: int) -> dict[str, Any]:
        price = "1" * 40 if trade_id in self.strange else f"{trade_id}.5"
        at_us = NOON_US + trade_id * 1_000
        return {"id": trade_id, "price": price, "qty": "2", "time": at_us, "isBuyerMaker": True, "isBestMatch": True}


class MemoryProducer(MemoryLetters):
    """A producer whose records are in the log at once; `stalled` confirms nothing."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__()
        self.log = log
        self.rows = 0
        self.stalled = False

    def publish(self, topic: str, partition: int, value: bytes, headers: Headers, rows: int) -> None:
        self.log.append((topic, partition), value, headers)
        self.rows += rows

    def publish_each(self, topic: str, partition: int, values: list[bytes]) -> None:
        for value in values:
            self.publish(topic, partition, value, [], 1)

    def flush(self, timeout_s: float) -> bool:
        if self.stalled:
            time.sleep(0.05)
            return False
        return super().flush(timeout_s)


class FreeBudget:
    """Grants everything and notes what it is told."""

    def __init__(self) -> None:
        self.granted = 0
        self.bans: list[float] = []
        self.used = 0

    async def permit(self, amount: int) -> None:
        self.granted += amount

    async def ban(self, for_s: float) -> None:
        self.bans.append(for_s)

    async def observe(self, used: int) -> None:
        self.used = used


class BackfillWorld:
    """Everything around a backfill.

    Args:
        folder: Empty; gets the table.
        settings: Over `QUICK`, the backfill's section.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings: Settings = load_settings(
            arguments={
                "data_dir": str(folder),
                "exchanges": {"binance": {"symbols": list(SYMBOLS), "channels": ["trades"]}},
                "kafka": {"partitions": 2},
                "backfill": {**QUICK, **settings},
                "lake": {"commit": {"interval_s": 0.1}, "upkeep": {"interval_s": 0.1}},
            },
            environ={},
        )
        self.layout = DataDir(folder)
        self.exchange = FakeExchange()
        self.log = MemoryLog({TOPIC: 2})
        self.producer = MemoryProducer(self.log)
        self.budget = FreeBudget()
        self.catalog = open_catalog(self.settings, self.layout)
        self.session = self.new_session()

    def new_session(self) -> BackfillSession:
        clock = SystemClock()
        return BackfillSession(
            self.settings,
            "binance",
            self.producer,
            ARROW,
            MemoryReader(self.log),
            CommittedLedgers(self.catalog, self.settings, "binance", clock),
            gap_recorder(self.catalog, self.settings, self.layout, "binance", clock),
            self.budget,
            ssl.create_default_context(),
            clock,
            self.exchange.transport(),
        )

    def publish(self, ids: Iterable[int], symbol: str = "BTCUSDT") -> None:
        """Let a feed bring these trades."""
        chosen = list(ids)
        self.log.publish((TOPIC, partition_of("binance", symbol, 2)), trades(chosen, symbol))
        self.exchange.newest[symbol] = max(self.exchange.newest[symbol], *chosen)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Run the table's writer."""
        writer = TableWriter(
            self.settings, self.layout, "trades", "", reader=MemoryReader(self.log), letters=MemoryLetters
        )
        stopped = False

        def write() -> None:
            while not stopped:
                writer.step(0.01)

        thread = asyncio.create_task(asyncio.to_thread(write))
        try:
            yield
        finally:
            stopped = True
            await thread
            writer.close()

    @contextlib.asynccontextmanager
    async def running(self, *, writing: bool = True) -> AsyncIterator[None]:
        """Run the backfill, and the writer."""
        async with contextlib.AsyncExitStack() as stack:
            if writing:
                await stack.enter_async_context(self.writing())
            task = asyncio.create_task(self.session.run())
            try:
                yield
            finally:
                if not task.done():
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def crash(self) -> None:
        """Forget everything that only the process knew."""
        self.session = self.new_session()

    def stored(self, symbol: str = "BTCUSDT") -> list[int]:
        """Return the ids in the table, sorted, repeated ones included."""
        table = load_table(self.catalog, self.settings, "trades")
        if table is None or table.metadata.current_snapshot_id is None:
            return []
        rows = table.scan(row_filter=f"symbol == '{symbol}'", selected_fields=("source_sequence",)).to_arrow()
        return sorted(rows["source_sequence"].to_pylist())

    def rows(self, symbol: str = "BTCUSDT") -> list[dict[str, Any]]:
        """Return the rows in the table, by id."""
        table = load_table(self.catalog, self.settings, "trades")
        assert table is not None
        found: list[dict[str, Any]] = table.scan(row_filter=f"symbol == '{symbol}'").to_arrow().to_pylist()
        return sorted(found, key=lambda row: row["source_sequence"])

    def events(self) -> list[dict[str, Any]]:
        """Return the rows of the gaps table, in the order of their storing."""
        table = load_table(self.catalog, self.settings, "gaps")
        return [] if table is None else table.scan().to_arrow().to_pylist()


async def lost_filled_and_open(found: BackfillWorld) -> BackfillWorld:
    """Leave BTC 1 to 9 with 3 lost and 5 to 6 filled, and ETH 1 and 4 with 2 to 3 open."""
    found.publish([1, 2, 4, 7, 8, 9])
    found.exchange.horizon = 4
    async with found.running():
        await until(
            lambda: len([event for event in found.events() if event["state"] != "open"]) == 2, "both are closed"
        )
    found.publish([1, 4], "ETHUSDT")
    async with found.writing():
        await until(lambda: len(found.stored("ETHUSDT")) == 2, "an open one")
    return found
