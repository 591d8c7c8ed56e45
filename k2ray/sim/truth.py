"""The truth: a Parquet file with every row that the market generated, whoever listened.

While the market runs only its blocks are logged, 25 bytes each, to `<file>.blocks`; the rows follow from them
(`market.py`) and are expanded, a bounded number at a time, when the file is asked for or the simulator ends. So writing
it down costs the hot path nothing and memory stays flat, whatever the rate.

Rows come sorted within a row group of one channel and symbol, about in the order of time across row groups.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from k2ray.sim.market import MATCH_LEAD_US, Block, Channel, Market, decimal_text

ROWS_AT_ONCE = 1_000_000

_TEXT = pa.dictionary(pa.int32(), pa.string())
TRUTH_SCHEMA = pa.schema(
    [
        pa.field("channel", _TEXT, nullable=False),  # trade, aggTrade, bookTicker
        pa.field("symbol", _TEXT, nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),  # 0, one more after each id reset of the symbol
        pa.field("id", pa.int64(), nullable=False),  # t, a or u
        pa.field("first_id", pa.int64()),  # aggTrade: f; trade: its id; bookTicker: null
        pa.field("last_id", pa.int64()),  # aggTrade: l; trade: its id; bookTicker: null
        pa.field("event_us", pa.int64(), nullable=False),  # E; the wire's milliseconds are this, cut
        pa.field("trade_us", pa.int64()),  # T in microseconds; bookTicker: null
        pa.field("price", _TEXT),
        pa.field("quantity", _TEXT),
        pa.field("is_buyer_maker", pa.bool_()),
        pa.field("bid_price", _TEXT),
        pa.field("bid_quantity", _TEXT),
        pa.field("ask_price", _TEXT),
        pa.field("ask_quantity", _TEXT),
        pa.field("fault", _TEXT),  # what a fault did to the row on its way to clients; null: nothing
    ]
)

_RECORD = struct.Struct("<BHHqiq")
_RECORD_TYPE = np.dtype(
    [("channel", "u1"), ("symbol", "<u2"), ("epoch", "<u2"), ("first", "<i8"), ("count", "<i4"), ("event_us", "<i8")]
)


@dataclass(frozen=True)
class Mark:
    """Rows that a fault altered on their way: ordinals [first, end)."""

    fault: str
    channel: Channel
    symbol: int
    epoch: int
    first: int
    end: int
    connection: int | None


class TruthLog:
    """Logs blocks and expands them to Parquet.

    Args:
        file: Where the Parquet file goes at the end; the log lies beside it meanwhile.
        market: What the blocks' content follows from.
    """

    def __init__(self, file: Path, market: Market) -> None:
        self.file = file
        self._log = file.with_name(file.name + ".blocks")
        self._market = market
        self._marks: list[Mark] = []
        self._lock = threading.Lock()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._out = self._log.open("w+b", buffering=262_144)

    def append(self, block: Block) -> None:
        """Log a block that was generated."""
        self._out.write(
            _RECORD.pack(block.channel, block.symbol, block.epoch, block.first, block.count, block.event_us)
        )

    def mark(self, mark: Mark) -> None:
        """Log what a fault did to rows."""
        self._marks.append(mark)

    def write(self, to: Path | None = None) -> int:
        """Write all that was logged until now as Parquet and return its rows; the log goes on.

        May run in another thread than `append`, if `sync` was called before.

        Args:
            to: Another file than the one named at the start.
        """
        to = self.file if to is None else to
        marks = list(self._marks)
        with self._lock:
            blocks = np.fromfile(self._log, dtype=_RECORD_TYPE)
            unfinished = to.with_name(to.name + ".tmp")
            rows = 0
            with pq.ParquetWriter(unfinished, TRUTH_SCHEMA, compression="zstd", store_schema=False) as writer:
                ends = np.cumsum(blocks["count"], dtype=np.int64)
                start = 0
                while start < len(blocks):
                    before = int(ends[start - 1]) if start else 0
                    stop = max(start + 1, int(np.searchsorted(ends, before + ROWS_AT_ONCE)))
                    for batch in self._expand(blocks[start:stop], marks):
                        writer.write_batch(batch)
                        rows += batch.num_rows
                    start = stop
            unfinished.replace(to)
        return rows

    def sync(self) -> None:
        """Make what was appended visible to `write`."""
        self._out.flush()

    def finish(self) -> int:
        """Write the file for good and remove the log."""
        self.sync()
        rows = self.write()
        self._out.close()
        self._log.unlink()
        return rows

    def _expand(self, blocks: NDArray[np.void], marks: Sequence[Mark]) -> list[pa.RecordBatch]:
        keys = (blocks["channel"].astype(np.int64) << 32) | (blocks["symbol"].astype(np.int64) << 16) | blocks["epoch"]
        return [self._rows(blocks[keys == key], marks) for key in np.unique(keys)]

    def _rows(self, blocks: NDArray[np.void], marks: Sequence[Mark]) -> pa.RecordBatch:
        """Return the rows of blocks that share channel, symbol and epoch."""
        channel, symbol, epoch = Channel(int(blocks["channel"][0])), int(blocks["symbol"][0]), int(blocks["epoch"][0])
        counts = blocks["count"].astype(np.int64)
        rows = int(counts.sum())
        within = np.arange(rows) - np.repeat(np.cumsum(counts) - counts, counts)
        ordinals = np.repeat(blocks["first"].astype(np.int64), counts) + within
        event_us = np.repeat(blocks["event_us"].astype(np.int64), counts)
        ids = self._market.ids(channel, symbol, epoch, ordinals)
        row = (ordinals % self._market.loop_length(channel, symbol)).astype(np.int32)
        tape = self._market.symbols[symbol].tape
        mine = [mark for mark in marks if (mark.channel, mark.symbol, mark.epoch) == (channel, symbol, epoch)]
        found: dict[str, pa.Array] = {
            "channel": _constant(channel.stream, rows),
            "symbol": _constant(self._market.symbols[symbol].name, rows),
            "epoch": pa.array(np.full(rows, epoch, dtype=np.int32)),
            "id": pa.array(ids),
            "event_us": pa.array(event_us),
            "fault": _faults(ordinals, mine),
        }
        if channel is Channel.BOOK_TICKER:
            found["bid_price"], found["bid_quantity"] = _repeated(tape.bids, row), _repeated(tape.bid_quantities, row)
            found["ask_price"], found["ask_quantity"] = _repeated(tape.asks, row), _repeated(tape.ask_quantities, row)
        else:
            found["trade_us"] = pa.array(event_us - MATCH_LEAD_US)
            grouped = channel is Channel.AGG_TRADE
            first, last = self._market.trade_ids_of_aggregates(symbol, epoch, ordinals) if grouped else (ids, ids)
            found["first_id"], found["last_id"] = pa.array(first), pa.array(last)
            found["price"] = _repeated(tape.group_prices if grouped else tape.prices, row)
            found["quantity"] = _repeated(tape.group_quantities if grouped else tape.quantities, row)
            found["is_buyer_maker"] = pa.array((tape.group_makers if grouped else tape.buyer_is_maker)[row])
        columns = [found[f.name] if f.name in found else pa.nulls(rows, f.type) for f in TRUTH_SCHEMA]
        return pa.RecordBatch.from_arrays(columns, schema=TRUTH_SCHEMA)


def _constant(value: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([value]))


def _repeated(values: NDArray[np.int64], row: NDArray[np.int32]) -> pa.DictionaryArray:
    distinct, codes = np.unique(values, return_inverse=True)
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)[row]), pa.array(decimal_text(distinct)))


def _faults(ordinals: NDArray[np.int64], marks: Sequence[Mark]) -> pa.Array:
    if not marks:
        return pa.nulls(len(ordinals), _TEXT)
    names = sorted({mark.fault for mark in marks})
    codes = np.full(len(ordinals), -1, dtype=np.int32)
    for mark in marks:
        codes[(ordinals >= mark.first) & (ordinals < mark.end)] = names.index(mark.fault)
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(names))
