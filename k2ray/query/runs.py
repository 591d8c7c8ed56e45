"""Trades -> bars without a database: runs of rows of one instrument and bar, then runs of the same bar together.

Files are sorted by symbol and time, so most batches are runs already and nothing needs to be sorted; a batch that is
not in order is sorted by (instrument, timestamp, source_sequence, price). The first and the last row of a run are its
open and close. A batch's runs are kept, not its rows, and no more bars than the answer can hold.

Not here: what is read (`bars.py`), the arithmetic (`decimals.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2ray.query import decimals
from k2ray.query.decimals import NARROW_SCALE, SCALE, Numbers

# Runs are put together once there are so many, and twice as many as the answer may hold.
RUNS_KEPT = 262_144

Int64s = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]
Instrument = tuple[str, str]

_TO_PRICE = 10 ** (SCALE - NARROW_SCALE)
_TO_NOTIONAL = {True: 1, False: _TO_PRICE}


@dataclass(frozen=True)
class Runs:
    """Runs as columns, one place each; prices and volumes times 10**18, notional times 10**36, as Python's integers.

    Attributes:
        bucket: Start of the bar, in us.
        code: Place of the instrument in `Folding.instruments`.
        first_us, first_sequence: When `open` was.
        last_us, last_sequence: When `close` was.
        open, close, high, low: Prices.
        volume: Sum of the quantities.
        notional: Sum of price times quantity.
        count: Trades.
    """

    bucket: Int64s
    code: Int64s
    first_us: Int64s
    first_sequence: Int64s
    last_us: Int64s
    last_sequence: Int64s
    open: Objects
    close: Objects
    high: Objects
    low: Objects
    volume: Objects
    notional: Objects
    count: Int64s

    def __len__(self) -> int:
        return len(self.bucket)

    def take(self, places: npt.NDArray[Any]) -> Runs:
        """Return the runs that a mask or an index array names."""
        return Runs(*(getattr(self, field.name)[places] for field in fields(self)))

    @staticmethod
    def concat(parts: list[Runs]) -> Runs:
        """Return all runs of several."""
        if len(parts) == 1:
            return parts[0]
        return Runs(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Runs)))


_NO_RUNS = Runs(
    **{field.name: np.empty(0, object if field.type == "Objects" else np.int64) for field in fields(Runs)},
)


class Folding:
    """Folds batches of trades into the first bars of an answer.

    Args:
        interval_us: Of the bars; they lie at its multiples since 1970.
        is_ascending: Whether the answer begins with the oldest bar.
        limit: How many bars are wanted.
        after: (bucket, exchange, symbol) that the answer begins after.
    """

    def __init__(self, interval_us: int, *, is_ascending: bool, limit: int, after: tuple[Any, ...] | None) -> None:
        self._interval_us = interval_us
        self._is_ascending = is_ascending
        self._limit = limit
        self._after = after
        self._codes: dict[Instrument, int] = {}
        self._parts: list[Runs] = []
        self._kept = 0

    @property
    def instruments(self) -> list[Instrument]:
        """(exchange, symbol) by code."""
        return list(self._codes)

    def add(self, batch: pa.RecordBatch) -> None:
        """Add trades: exchange, symbol, timestamp, sequence (no nulls), price and quantity, in any order."""
        if not len(batch):
            return
        runs = self._runs(batch)
        self._parts.append(runs)
        self._kept += len(runs)
        if self._kept > max(RUNS_KEPT, 2 * self._limit):
            self._parts = [self.bars()]
            self._kept = len(self._parts[0])

    def bars(self) -> Runs:
        """Return the first bars of what was added, in the answer's order.

        Bars beyond the limit may go at any time: so many others come before them that no further row brings them back.
        """
        if not self._parts:
            return _NO_RUNS
        names = self.instruments
        rank = np.empty(len(names), dtype=np.int64)
        rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        runs = Runs.concat(self._parts)
        runs = runs.take(np.lexsort((rank[runs.code], runs.bucket)))
        if self._after is not None:
            runs = runs.take(self._is_beyond(runs, names, self._after))
        starts = _starts((runs.bucket[1:] != runs.bucket[:-1]) | (runs.code[1:] != runs.code[:-1]), len(runs))
        if len(starts) > self._limit:
            keep = slice(0, starts[self._limit]) if self._is_ascending else slice(starts[-self._limit], None)
            runs = Runs(*(getattr(runs, field.name)[keep] for field in fields(runs)))
            starts = starts[: self._limit] if self._is_ascending else starts[-self._limit :] - starts[-self._limit]
        merged = runs if len(starts) == len(runs) else _merge(runs, starts)
        return merged if self._is_ascending else merged.take(np.arange(len(merged))[::-1])

    def _runs(self, batch: pa.RecordBatch) -> Runs:
        times = batch["timestamp"].view(pa.int64()).to_numpy()
        sequence = batch["sequence"].to_numpy()
        codes = self._codes_of(batch)
        price, is_wide_price = _numbers(batch["price"])
        quantity, is_wide_quantity = _numbers(batch["quantity"])
        bucket = times - np.mod(times, self._interval_us)
        changes = (bucket[1:] != bucket[:-1]) | (codes[1:] != codes[:-1])
        later = (times[1:] > times[:-1]) | ((times[1:] == times[:-1]) & (sequence[1:] > sequence[:-1]))
        if not np.all(changes | later):
            order = np.lexsort((_ranks(price), sequence, times, codes))
            times, sequence, codes, bucket = times[order], sequence[order], codes[order], bucket[order]
            price, quantity = price[order], quantity[order]
            changes = (bucket[1:] != bucket[:-1]) | (codes[1:] != codes[:-1])
        starts = _starts(changes, len(times))
        ends = np.append(starts[1:], len(times)) - 1
        to_price, to_quantity = _TO_NOTIONAL[is_wide_price], _TO_NOTIONAL[is_wide_quantity]
        return Runs(
            bucket=bucket[starts],
            code=codes[starts],
            first_us=times[starts],
            first_sequence=sequence[starts],
            last_us=times[ends],
            last_sequence=sequence[ends],
            open=price[starts].astype(object) * to_price,
            close=price[ends].astype(object) * to_price,
            high=np.maximum.reduceat(price, starts).astype(object) * to_price,
            low=np.minimum.reduceat(price, starts).astype(object) * to_price,
            volume=decimals.sums(quantity, starts) * to_quantity,
            notional=decimals.sums_of_products(price, quantity, starts) * (to_price * to_quantity),
            count=ends - starts + 1,
        )

    def _codes_of(self, batch: pa.RecordBatch) -> Int64s:
        if all(pc.all(pc.equal(batch[name], batch[name][0])).as_py() for name in ("exchange", "symbol")):
            instrument = (batch["exchange"][0].as_py(), batch["symbol"][0].as_py())
            return np.full(len(batch), self._codes.setdefault(instrument, len(self._codes)), dtype=np.int64)
        exchanges, symbols = batch["exchange"].dictionary_encode(), batch["symbol"].dictionary_encode()
        width = len(symbols.dictionary)
        pairs = exchanges.indices.to_numpy().astype(np.int64) * width + symbols.indices.to_numpy()
        table = np.zeros(len(exchanges.dictionary) * width, dtype=np.int64)
        exchange_names, symbol_names = exchanges.dictionary.to_pylist(), symbols.dictionary.to_pylist()
        for pair in np.flatnonzero(np.bincount(pairs, minlength=len(table))):
            instrument = (exchange_names[pair // width], symbol_names[pair % width])
            table[pair] = self._codes.setdefault(instrument, len(self._codes))
        codes: Int64s = table[pairs]
        return codes

    def _is_beyond(self, runs: Runs, names: list[Instrument], after: tuple[Any, ...]) -> npt.NDArray[np.bool_]:
        bucket, instrument = after[0], (after[1], after[2])
        later = [name > instrument if self._is_ascending else name < instrument for name in names]
        beyond = runs.bucket > bucket if self._is_ascending else runs.bucket < bucket
        found: npt.NDArray[np.bool_] = beyond | ((runs.bucket == bucket) & np.array(later, np.bool_)[runs.code])
        return found


def _merge(runs: Runs, starts: Int64s) -> Runs:
    """Put the runs of each bar together; they lie next to each other."""
    lengths = np.diff(np.append(starts, len(runs)))
    group = np.repeat(np.arange(len(starts)), lengths)
    opening = np.lexsort((_ranks(runs.open), runs.first_sequence, runs.first_us, group))[starts]
    closing = np.lexsort((_ranks(runs.close), runs.last_sequence, runs.last_us, group))[starts + lengths - 1]
    return Runs(
        bucket=runs.bucket[starts],
        code=runs.code[starts],
        first_us=runs.first_us[opening],
        first_sequence=runs.first_sequence[opening],
        last_us=runs.last_us[closing],
        last_sequence=runs.last_sequence[closing],
        open=runs.open[opening],
        close=runs.close[closing],
        high=np.maximum.reduceat(runs.high, starts),
        low=np.minimum.reduceat(runs.low, starts),
        volume=np.add.reduceat(runs.volume, starts),
        notional=np.add.reduceat(runs.notional, starts),
        count=np.add.reduceat(runs.count, starts),
    )


def _numbers(column: pa.Array) -> tuple[Numbers, bool]:
    narrow = decimals.read_narrow(column)
    return (decimals.read_wide(column), True) if narrow is None else (narrow, False)


def _ranks(numbers: Numbers) -> Numbers:
    """Return numbers that sort alike, which lexsort can take."""
    return numbers if numbers.dtype != object else np.unique(numbers, return_inverse=True)[1]


def _starts(changes: npt.NDArray[np.bool_], rows: int) -> Int64s:
    """Return where runs begin, given whether each row but the first begins another."""
    if not rows:
        return np.empty(0, dtype=np.int64)
    return np.concatenate(([0], np.flatnonzero(changes) + 1)).astype(np.int64)
