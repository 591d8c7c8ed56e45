"""Rows, records and a log in memory for tests and benchmarks of the lake."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table

from k2ray.lake.catalog import ensure_table, open_catalog
from k2ray.lake.commit import Append
from k2ray.lake.progress import Offset
from k2ray.lake.stage import Origin, ledger_location, stage
from k2ray.layout import DataDir
from k2ray.log.consumer import ClusterIds, LogRecord, OffsetLost, PartitionKey, Position, TopicIds
from k2ray.log.records import Fetched, in_runs
from k2ray.model import DECIMAL, QUOTES_WIRE, REPEATED, TIMESTAMP, TRADES_WIRE
from k2ray.settings import Settings, load_settings
from k2ray.wire.codec import Headers, encode_rows

NOON_US = 1_717_243_200_000_000
"""2024-06-01 12:00 UTC."""


def decimals(unscaled: np.ndarray) -> pa.Array:
    """Return int64 numbers of 10**-8 as decimal(38,18), without a Python object a row."""
    whole = unscaled.astype(np.int64)
    wide = np.empty((len(whole), 2), dtype=np.int64)
    wide[:, 0] = whole * 10**10
    # The product's upper 64 bits, through a shift of 20 that keeps both partial products below 2**63.
    wide[:, 1] = ((whole >> 20) * 10**10 + (((whole & 0xFFFFF) * 10**10) >> 20)) >> 44
    return pa.Array.from_buffers(DECIMAL, len(unscaled), [None, pa.py_buffer(wide.tobytes())])


def constant(value: str, rows: int) -> pa.DictionaryArray:
    """Return a dictionary column with one value."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([value], pa.string()))


def trades(
    ids: Sequence[int] | np.ndarray,
    symbols: Sequence[str] | str = "BTCUSDT",
    *,
    exchange: str = "binance",
    start_us: int = NOON_US,
    step_us: int = 1_000,
    space: str = "",
    origin: str = "live",
) -> pa.RecordBatch:
    """Return wire trades; row i has `ids[i]`, symbol i (or the one), and a time, price and quantity made from its id.

    Args:
        ids: `source_sequence` of each row; `trade_id` is its text.
        symbols: One for all, or one a row.
        exchange: Of all rows.
        start_us: Time of id 0.
        step_us: Microseconds between ids.
        space: `sequence_space` of all rows.
        origin: Of all rows.
    """
    numbers = np.asarray(ids, dtype=np.int64)
    rows = len(numbers)
    stamps = pa.array(start_us + numbers * step_us, pa.int64()).cast(TIMESTAMP)
    symbol = constant(symbols, rows) if isinstance(symbols, str) else pa.array(symbols).dictionary_encode()
    columns = {
        "exchange": constant(exchange, rows),
        "symbol": symbol,
        "asset_class": constant("crypto", rows),
        "trade_id": pa.array(numbers).cast(pa.string()),
        "timestamp": stamps,
        "price": decimals(6_000_000_000_000 + (numbers * 7919) % 100_000_000),
        "quantity": decimals(1_000 + (numbers * 104_729) % 5_000_000),
        "currency": constant("USDT", rows),
        "side": pa.DictionaryArray.from_arrays(pa.array((numbers % 2).astype(np.int32)), pa.array(["BUY", "SELL"])),
        "trade_conditions": pa.nulls(rows, pa.list_(pa.string())),
        "source_sequence": pa.array(numbers),
        "sequence_space": constant(space, rows),
        "ingestion_timestamp": stamps,
        "origin": constant(origin, rows),
        "vendor_data": pa.nulls(rows, TRADES_WIRE.field("vendor_data").type),
        "sequence_from": pa.array(numbers - 1),
    }
    assert symbol.type == REPEATED
    return pa.record_batch([columns[name] for name in TRADES_WIRE.names], schema=TRADES_WIRE)


class MemoryLog:
    """A log in memory that a `TableWriter` reads as it reads Kafka; several readers can share one.

    Args:
        topics: Topic -> partitions.

    Attributes:
        came_us: When its records came, as readers are told.
    """

    def __init__(self, topics: dict[str, int]) -> None:
        self.cluster_id = "cluster-1"
        self.topic_ids = {topic: f"id-{number}" for number, topic in enumerate(topics)}
        self.partitions: dict[PartitionKey, list[tuple[bytes, Headers]]] = {
            (topic, number): [] for topic, count in topics.items() for number in range(count)
        }
        self.low: dict[PartitionKey, int] = dict.fromkeys(self.partitions, 0)
        self.questions = 0
        self.came_us = NOON_US

    def append(self, key: PartitionKey, value: bytes, headers: Headers) -> None:
        """Add a record to the end of a partition."""
        self.partitions[key].append((value, headers))

    def publish(self, key: PartitionKey, rows: pa.RecordBatch, table: str = "trades") -> None:
        """Add a record with rows."""
        self.append(key, *encode_rows(table, rows))


class MemoryReader:
    """A writer's own view of a `MemoryLog`."""

    def __init__(self, log: MemoryLog, max_records: int | None = None) -> None:
        self.log = log
        self.positions: dict[PartitionKey, int] = {}
        self.max_records = max_records
        self.closed = False

    def cluster(self, topics: Sequence[str]) -> ClusterIds:
        counts: dict[str, int] = {}
        for topic, _ in self.log.partitions:
            counts[topic] = counts.get(topic, 0) + 1
        found = {topic: TopicIds(self.log.topic_ids[topic], counts[topic]) for topic in topics if topic in counts}
        return ClusterIds(self.log.cluster_id, found)

    def assign(self, positions: Mapping[PartitionKey, Position]) -> None:
        self.positions = {key: position.offset for key, position in positions.items()}

    def poll(self, max_records: int, timeout_s: float) -> list[LogRecord]:
        room = max_records if self.max_records is None else min(max_records, self.max_records)
        found: list[LogRecord] = []
        for key, position in self.positions.items():
            low, high = self.log.low[key], len(self.log.partitions[key])
            if position < low or position > high:
                raise OffsetLost(key, position, low, high)
            for offset in range(position, min(high, position + room - len(found))):
                value, headers = self.log.partitions[key][offset]
                found.append(LogRecord(*key, offset, 0, self.log.came_us, value, headers))
                self.positions[key] = offset + 1
        if not found and timeout_s:
            time.sleep(min(timeout_s, 0.002))
        return found

    def fetch(self, max_records: int, timeout_s: float) -> list[Fetched]:
        return in_runs(self.poll(max_records, timeout_s))

    def watermarks(self, key: PartitionKey, *, timeout_s: float = 1.0) -> tuple[int, int]:
        self.log.questions += 1
        return self.log.low[key], len(self.log.partitions[key])

    def cached_end(self, key: PartitionKey) -> int | None:
        return len(self.log.partitions[key])

    def close(self) -> None:
        self.closed = True


class MemoryLetters:
    """Dead letters in memory; `away` refuses to confirm."""

    def __init__(self) -> None:
        self.letters: list[tuple[str, bytes, str, str, int]] = []
        self.away = False
        self._waiting: list[tuple[str, bytes, str, str, int]] = []

    def dead_letter(self, exchange: str, raw: bytes, reason: str, *, source: str, at_us: int) -> None:
        self._waiting.append((exchange, raw, reason, source, at_us))

    def flush(self, timeout_s: float) -> bool:
        if self.away:
            self._waiting.clear()
            return False
        self.letters += self._waiting
        self._waiting.clear()
        return True

    def close(self, timeout_s: float) -> bool:
        return True


TRADES_TOPIC = "market.crypto.trades.binance"


def lake_settings(folder: Path, **commit: float) -> Settings:
    """Return settings with everything below `folder`.

    Args:
        folder: data_dir.
        commit: Over `lake.commit`, whose interval is long enough here to never come by itself.
    """
    return load_settings(
        arguments={"data_dir": str(folder), "lake": {"commit": {"interval_s": 3600, **commit}}}, environ={}
    )


def open_table(folder: Path, partitions: int = 2, table_name: str = "trades", **more: Any) -> Table:
    """Return a ready table with a catalog of its own below `folder`; each call is like another process."""
    settings = lake_settings(folder)
    catalog = open_catalog(settings, DataDir(folder))
    topic = TRADES_TOPIC if table_name == "trades" else TRADES_TOPIC.replace("trades", "quotes")
    return ensure_table(catalog, settings, table_name, {topic: partitions}, **more)


def append_of(
    table: Table,
    start: int,
    end: int,
    rows: pa.RecordBatch | None = None,
    partition: int = 0,
    topic: str = TRADES_TOPIC,
) -> Append:
    """Return a staged append that moves one partition from `start` to `end`; other partitions are at 0.

    Args:
        table: Where its files go.
        start: Committed offset that it builds on.
        end: Offset after it.
        rows: To be stored; None for as many trades as offsets, with the offsets as ids.
        partition: Which one moves.
        topic: Whose.
    """
    batch = trades(range(start, end)) if rows is None else rows
    files = stage(table, "trades", pa.Table.from_batches([batch]), Origin("id-0", partition, start, end))
    location = ledger_location(table)
    with table.io.new_output(location).create() as stream:
        stream.write(b"a ledger")
    key = (topic, partition)
    return Append(tuple(files), {key: Offset(start)}, {key: Offset(end)}, location, "cluster-1", {topic: "id-0"})


def stored_ids(table: Table) -> list[int]:
    """Return the sequence numbers of all rows, sorted."""
    table.refresh()
    return sorted(table.scan(selected_fields=("source_sequence",)).to_arrow()["source_sequence"].to_pylist())


class Killed(BaseException):
    """Raised at a fault point in place of a kill: nothing may catch it."""


def kill_at(point: str, times: int = 1) -> Callable[[str], None]:
    """Return faults that kill at a named point, the first `times` that it is reached."""
    left = [times]

    def fault(reached: str) -> None:
        if reached == point and left[0]:
            left[0] -= 1
            raise Killed(point)

    return fault


QUOTES_TOPIC = "market.crypto.quotes.binance"


def quotes(
    ids: Sequence[int], symbol: str = "BTCUSDT", *, start_us: int = NOON_US, step_us: int = 1_000
) -> pa.RecordBatch:
    """Return wire quotes of one connection: each covers the ids since the one before it, the first itself alone.

    Args:
        ids: `source_sequence` of each row, growing.
        symbol: Of all rows.
        start_us: Time of id 0.
        step_us: Microseconds between ids.
    """
    numbers = np.asarray(ids, dtype=np.int64)
    rows = len(numbers)
    stamps = pa.array(start_us + numbers * step_us, pa.int64()).cast(TIMESTAMP)
    columns = {
        "exchange": constant("binance", rows),
        "symbol": constant(symbol, rows),
        "asset_class": constant("crypto", rows),
        "quote_id": pa.array(numbers).cast(pa.string()),
        "timestamp": stamps,
        "bid_price": decimals(6_000_000_000_000 + numbers),
        "bid_quantity": decimals(1_000 + numbers),
        "ask_price": decimals(6_000_100_000_000 + numbers),
        "ask_quantity": decimals(2_000 + numbers),
        "currency": constant("USDT", rows),
        "source_sequence": pa.array(numbers),
        "sequence_space": constant("", rows),
        "ingestion_timestamp": stamps,
        "origin": constant("live", rows),
        "vendor_data": pa.nulls(rows, QUOTES_WIRE.field("vendor_data").type),
        "sequence_from": pa.array(np.concatenate([numbers[:1] - 1, numbers[:-1]])),
    }
    return pa.record_batch([columns[name] for name in QUOTES_WIRE.names], schema=QUOTES_WIRE)
