"""OHLCV bars with exact sums: prices and quantities are cut to their own digits before they multiply.

decimal(38,18) times itself overflows, doubles are inexact, and DuckDB takes 1,000 ns to cast a wide decimal to anything
smaller, Arrow 90. So DuckDB finds open, high, low, close, volume and count, and the products are summed in Arrow:

1. Most instruments have at most 8 decimals: Arrow's checked cast to 8 either loses nothing or says so.
2. Instruments that it refuses are looked at again: their own scales are measured in the data, and if they add up to 20
   digits or less, decimals of those scales are multiplied (slow, exact).
3. What is left is multiplied as doubles, and its bars say `"exact": false`. Only vwap is affected: open, high, low,
   close, volume and count are exact always.

A bar lies at a multiple of the interval since 1970 UTC, never mixes two sequence spaces' numberings, and takes first
and last by (timestamp, source_sequence), so it does not depend on how files or threads are cut.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Context, Decimal

import pyarrow as pa
import pyarrow.compute as pc

from k2ray.errors import QueryTooLarge
from k2ray.model import DECIMAL, TIMESTAMP
from k2ray.query.cursor import Cursor
from k2ray.query.database import Database
from k2ray.query.files import Pinned
from k2ray.query.plan import Slice
from k2ray.query.request import BarsRequest, Selection
from k2ray.query.scan import fetch_source, fold_source, source_sql, where_sql

USUAL_SCALE = 8
MAX_PRODUCT_SCALE = 20
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

_EXACTLY = Context(prec=100)
_LAST_DIGIT = Decimal(1).scaleb(-18)

_GROUP = ["exchange", "symbol", "bucket"]
_NARROW = pa.decimal128(18, USUAL_SCALE)

Instrument = tuple[str, str]


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
    reader = _Reader(database, pinned, request, part, limit, cursor)
    try:
        rows = reader.aggregate(selection)
    except OverflowError:
        raise QueryTooLarge("a bar's volume has more than 20 digits; ask for a shorter interval") from None
    products = _Products()
    if rows.num_rows:
        reader.multiply(_narrowed(selection, rows["bucket"], request.interval_us), products)
    instruments = list(zip(rows["exchange"].to_pylist(), rows["symbol"].to_pylist(), strict=True))
    sums = products.sums()
    notionals = [
        None if instrument in products.refused else sums[*instrument, bucket]
        for instrument, bucket in zip(instruments, rows["bucket"].to_pylist(), strict=True)
    ]
    vwaps = [_ratio(notional, volume) for notional, volume in zip(notionals, rows["volume"].to_pylist(), strict=True)]
    exact = [notional is not None for notional in notionals]
    places: dict[Instrument, dict[int, int]] = {}
    for place, instrument in enumerate(instruments):
        if not exact[place]:
            places.setdefault(instrument, {})[rows["bucket"][place].as_py()] = place
    for instrument, buckets in places.items():
        found, is_exact = reader.unusual(selection, instrument)
        for bucket, place in buckets.items():
            vwaps[place] = found[bucket]
            exact[place] = is_exact
    columns = {name: rows[name] for name in BARS.names if name in rows.column_names}
    columns["timestamp"] = rows["bucket"].cast(TIMESTAMP)
    columns["vwap"] = pa.array(vwaps, DECIMAL)
    columns["exact"] = pa.array(exact, pa.bool_())
    return pa.table([columns[name] for name in BARS.names], schema=BARS)


class _Products:
    """Exact sums of price times quantity by instrument and bucket, batch by batch.

    Attributes:
        refused: Instruments that have more digits than 8 after the point or 10 before it.
    """

    def __init__(self) -> None:
        self.refused: set[Instrument] = set()
        self._parts: list[pa.Table] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Add trades with exchange, symbol, bucket, price and quantity."""
        rows = pa.Table.from_batches([batch])
        try:
            self._parts.append(_sum_products(rows))
        except pa.ArrowInvalid:
            for exchange, symbol in {*zip(rows["exchange"].to_pylist(), rows["symbol"].to_pylist(), strict=True)}:
                mine = pc.and_(pc.equal(rows["exchange"], exchange), pc.equal(rows["symbol"], symbol))
                try:
                    self._parts.append(_sum_products(rows.filter(mine)))
                except pa.ArrowInvalid:
                    self.refused.add((exchange, symbol))

    def sums(self) -> dict[tuple[str, str, int], Decimal]:
        """Return (exchange, symbol, bucket) -> sum; those of refused instruments are not whole."""
        if not self._parts:
            return {}
        whole = pa.concat_tables(self._parts).group_by(_GROUP).aggregate([("product", "sum")])
        keys = zip(*(whole[name].to_pylist() for name in _GROUP), strict=True)
        return dict(zip(keys, whole["product_sum"].to_pylist(), strict=True))


def _sum_products(rows: pa.Table) -> pa.Table:
    """Sum price times quantity by group.

    Raises:
        pa.ArrowInvalid: A number has more digits than `_NARROW` holds.
    """
    product = pc.multiply(rows["price"].cast(_NARROW), rows["quantity"].cast(_NARROW))
    # 40 digits more than a product has: no sum of these overflows.
    wide = product.cast(pa.decimal256(76, 2 * USUAL_SCALE))
    grouped = rows.select(_GROUP).append_column("product", wide).group_by(_GROUP).aggregate([("product", "sum")])
    return grouped.rename_columns({"product_sum": "product"})


class _Reader:
    """The statements about one slice; they differ in how price and quantity are multiplied."""

    def __init__(
        self, database: Database, pinned: Pinned, request: BarsRequest, part: Slice, limit: int, cursor: Cursor | None
    ) -> None:
        self._database = database
        self._pinned = pinned
        self._interval_us = request.interval_us
        self._order = request.order
        self._part = part
        self._limit = limit
        self._cursor = cursor

    def aggregate(self, selection: Selection) -> pa.Table:
        """Return bars with `bucket` (us) and without vwap.

        Raises:
            OverflowError: A sum does not fit.
        """
        conditions, values = where_sql(selection, self._part)
        after = ""
        if self._cursor is not None:
            sign = ">" if self._order == "asc" else "<"
            after = f"WHERE (bucket, exchange, symbol) {sign} ($after_0, $after_1, $after_2)"
            values.update({f"after_{place}": value for place, value in enumerate(self._cursor.position)})
        direction = "ASC" if self._order == "asc" else "DESC"
        values["limit"] = self._limit
        statement = f"""
            SELECT * FROM (
                SELECT exchange, symbol, bucket,
                    arg_min(price, moment) AS open, max(price) AS high,
                    min(price) AS low, arg_max(price, moment) AS close,
                    sum(quantity) AS volume, count(*) AS count
                FROM (
                    SELECT exchange, symbol, {_bucket(self._interval_us)} AS bucket, price, quantity,
                        (timestamp, source_sequence, price) AS moment
                    FROM {source_sql()} {_where(conditions)}
                )
                GROUP BY exchange, symbol, bucket
            ) {after}
            ORDER BY bucket {direction}, exchange {direction}, symbol {direction} LIMIT $limit
        """
        return fetch_source(self._database, self._pinned, statement, values, self._part)

    def multiply(self, selection: Selection, products: _Products) -> None:
        """Add up price times quantity of a selection's trades."""
        conditions, values = where_sql(selection, self._part)
        statement = f"""
            SELECT exchange, symbol, {_bucket(self._interval_us)} AS bucket, price, quantity
            FROM {source_sql()} {_where(conditions)}
        """
        fold_source(self._database, self._pinned, statement, values, self._part, products.add)

    def unusual(self, selection: Selection, instrument: Instrument) -> tuple[dict[int, Decimal | None], bool]:
        """Return bucket -> vwap of one instrument, and whether they are exact."""
        selection = replace(selection, exchange=instrument[0], symbols=(instrument[1],))
        price, quantity = self._scales(selection)
        if price + quantity <= MAX_PRODUCT_SCALE:
            product = f"sum(price::DECIMAL(38,{price}) * quantity::DECIMAL(38,{quantity}))"
            try:
                return self._ratios(selection, product), True
            except OverflowError:
                pass
        return self._ratios(selection, "sum(price::DOUBLE * quantity::DOUBLE)"), False

    def _scales(self, selection: Selection) -> tuple[int, int]:
        conditions, values = where_sql(selection, self._part)
        digits = ", ".join(
            f"max(length(rtrim(split_part({name}::VARCHAR, '.', 2), '0')))" for name in ("price", "quantity")
        )
        statement = f"SELECT {digits} FROM {source_sql()} {_where(conditions)}"
        found = fetch_source(self._database, self._pinned, statement, values, self._part)
        return found[0][0].as_py(), found[1][0].as_py()

    def _ratios(self, selection: Selection, product: str) -> dict[int, Decimal | None]:
        conditions, values = where_sql(selection, self._part)
        statement = f"""
            SELECT {_bucket(self._interval_us)} AS bucket, {product} AS notional, sum(quantity) AS volume
            FROM {source_sql()} {_where(conditions)} GROUP BY bucket
        """
        found = fetch_source(self._database, self._pinned, statement, values, self._part)
        return {
            bucket: _ratio(Decimal(repr(notional)) if isinstance(notional, float) else notional, volume)
            for bucket, notional, volume in zip(*(column.to_pylist() for column in found.columns), strict=True)
        }


def _ratio(notional: Decimal | None, volume: Decimal) -> Decimal | None:
    if notional is None or not volume:
        return None
    return _EXACTLY.divide(notional, volume).quantize(_LAST_DIGIT, context=_EXACTLY)


def _narrowed(selection: Selection, buckets: pa.ChunkedArray, interval_us: int) -> Selection:
    """Return the selection of those trades alone whose bars were found within the limit."""
    bounds = pc.min_max(buckets).as_py()
    return replace(selection, start_us=bounds["min"], end_us=bounds["max"] + interval_us)


def _bucket(interval_us: int) -> str:
    """Return SQL of a bar's start in microseconds; rounds down before 1970 too. The interval is a number of ours."""
    moment = "epoch_us(timestamp)"
    return f"{moment} - (({moment} % {interval_us}) + {interval_us}) % {interval_us}"


def _where(conditions: list[str]) -> str:
    return f"WHERE {' AND '.join(conditions)}" if conditions else ""
