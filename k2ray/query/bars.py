"""OHLCV bars with exact sums, from one read of the trades' pruned columns.

DuckDB takes 1 us to narrow or multiply one wide decimal, so it only reads and filters; numpy makes the bars
(`runs.py`) in whole numbers, so open, high, low, close, volume, vwap and count are all exact, whatever the digits of
an instrument. `"exact"` is in every bar for answers that cannot promise it (none does today).

A bar lies at a multiple of the interval since 1970 UTC, never mixes two sequence spaces' numberings, and takes first
and last by (timestamp, source_sequence), so it does not depend on how files or threads are cut.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from k2ray.errors import QueryTooLarge
from k2ray.model import DECIMAL, TIMESTAMP
from k2ray.query.cursor import Cursor
from k2ray.query.database import Database
from k2ray.query.decimals import decimal_array
from k2ray.query.files import Pinned
from k2ray.query.plan import Slice
from k2ray.query.request import BarsRequest, Selection
from k2ray.query.runs import Folding, Runs
from k2ray.query.scan import fold_source, sequence_sql, source_sql, where_sql

BAR_KEY = ("timestamp", "exchange", "symbol")

BARS = pa.schema(
    [
        pa.field("exchange", pa.string(), nullable=False),
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("timestamp", TIMESTAMP, nullable=False),
        *(pa.field(name, DECIMAL, nullable=False) for name in ("open", "high", "low", "close", "volume")),
        pa.field("vwap", DECIMAL),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("exact", pa.bool_(), nullable=False),
    ]
)
"""Columns of bars; `timestamp` is a bar's start. vwap is rounded half to even at 18 decimals; null without volume."""


def covering(selection: Selection, interval_us: int, *, inner: bool = True) -> Selection:
    """Return the selection of the trades that make the bars which start in [start, end).

    Args:
        selection: Its times speak of the bars' starts.
        interval_us: Of the bars.
        inner: Round the start up (a bar that began before it does not belong); else down (it is continued from there).
    """
    start, end = selection.start_us, selection.end_us
    if start is not None:
        start = (-(-start // interval_us) if inner else start // interval_us) * interval_us
    if end is not None:
        end = -(-end // interval_us) * interval_us
    return replace(selection, start_us=start, end_us=end)


def bars_of(
    database: Database,
    pinned: Pinned,
    request: BarsRequest,
    selection: Selection,
    part: Slice,
    limit: int,
    cursor: Cursor | None,
) -> pa.Table:
    """Return the first `limit` bars of one slice, in the request's order, as `BARS`.

    Raises:
        QueryTooLarge: A volume does not fit 20 digits before the point, or a limit of the database was hit.
    """
    folding = Folding(
        request.interval_us,
        is_ascending=request.order == "asc",
        limit=limit,
        after=None if cursor is None else cursor.position,
    )
    conditions, values = where_sql(selection, part)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    statement = f"""
        SELECT exchange, symbol, timestamp, {sequence_sql()} AS sequence, price, quantity FROM {source_sql()} {where}
    """
    fold_source(database, pinned, statement, values, part, folding.add)
    try:
        return _table(folding.bars(), folding.instruments)
    except OverflowError:
        raise QueryTooLarge("a bar's volume has more than 20 digits; ask for a shorter interval") from None


def _table(bars: Runs, instruments: list[tuple[str, str]]) -> pa.Table:
    """Return bars as `BARS`.

    Raises:
        OverflowError: A number does not fit its decimal type.
    """
    codes = pa.array(bars.code)
    exchanges = pa.array([exchange for exchange, _ in instruments], pa.string())
    symbols = pa.array([symbol for _, symbol in instruments], pa.string())
    ratios = [_ratio(notional, volume) for notional, volume in zip(bars.notional, bars.volume, strict=True)]
    absent = np.array([ratio is None for ratio in ratios], dtype=np.bool_)
    columns = [
        exchanges.take(codes),
        symbols.take(codes),
        pa.array(bars.bucket).cast(TIMESTAMP),
        *(decimal_array(numbers) for numbers in (bars.open, bars.high, bars.low, bars.close, bars.volume)),
        decimal_array(np.array([ratio or 0 for ratio in ratios], dtype=object), absent),
        pa.array(bars.count),
        pa.repeat(pa.scalar(True), len(bars)),
    ]
    return pa.table(columns, schema=BARS)


def _ratio(notional: int, volume: int) -> int | None:
    """Return notional (times 10**36) by volume (times 10**18), rounded half to even; None without volume."""
    if not volume:
        return None
    if volume < 0:
        notional, volume = -notional, -volume
    whole, rest = divmod(notional, volume)
    return whole + (2 * rest > volume or (2 * rest == volume and whole % 2 == 1))
