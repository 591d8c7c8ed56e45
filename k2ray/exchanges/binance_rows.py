"""4. Decoded Binance frames to columns: what each field becomes, what each row covers. No routing, no JSON errors.

`binance.py` documents what becomes of each field; `binance_decode.py` calls this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2ray import model
from k2ray.exchanges import columns
from k2ray.exchanges.base import Instrument, Times

CURRENCIES = (
    "FDUSD USDT USDC TUSD BUSD USDP USD1 USDE BVND BIDR IDRT DAI PAX EUR TRY BRL GBP AUD RUB UAH NGN ZAR PLN RON ARS "
    "JPY MXN CZK COP IDR BTC ETH BNB XRP TRX DOGE DOT SOL EURI AEUR BKRW UST VAI USD"
).split()
"""Quote assets that a symbol may end with, for the time until exchangeInfo answers. The longest that fits is taken."""
_LONGEST_FIRST = sorted(CURRENCIES, key=len, reverse=True)

# Bounds that the columns need: outside of them a frame is dead, not the batch.
_Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_IdOrVoid = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
_Time = Annotated[int, msgspec.Meta(gt=0, le=253_402_300_799_999_999)]

Codes = npt.NDArray[np.int32]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_SIDES = pa.array(["BUY", "SELL"])
_CONDITIONS = model.TRADES_WIRE.field("trade_conditions").type


class Trade(msgspec.Struct, gc=False):
    """@trade, without what no row keeps."""

    t: _Id
    p: str
    q: str
    T: _Time
    m: bool
    M: bool = True


class AggTrade(msgspec.Struct, gc=False):
    """@aggTrade."""

    a: _Id
    p: str
    q: str
    f: _IdOrVoid
    l: _IdOrVoid  # noqa: E741 - Binance's name
    T: _Time
    E: _Time
    m: bool
    M: bool = True


class BookTicker(msgspec.Struct, gc=False):
    """@bookTicker."""

    u: _Id
    b: str
    B: str
    a: str
    A: str


KINDS: dict[str, Any] = {"trades": Trade, "agg_trades": AggTrade, "quotes": BookTicker}
DECIMALS = {"trades": ("p", "q"), "agg_trades": ("p", "q"), "quotes": ("b", "B", "a", "A")}
"""Channel -> fields whose texts must fit decimal(38,18)."""


def guess_currency(symbol: str) -> str:
    """Return the quote asset that a symbol seems to end with; empty if none is known. A fallback, not a source."""
    for currency in _LONGEST_FIRST:
        if symbol.endswith(currency) and len(symbol) > len(currency):
            return currency
    return ""


class RowBuilder:
    """Builds the batches of one connection; remembers the last ids that rows cover from.

    Args:
        exchange: For the `exchange` column.
        asset_class: For the `asset_class` column.
        symbols: A row's code is its symbol's place here.
        origin: For the `origin` column, from `model.ORIGINS`.
    """

    def __init__(self, exchange: str, asset_class: str, symbols: Sequence[str], origin: str = "live") -> None:
        self._exchange = exchange
        self._origin = origin
        self._asset_class = asset_class
        self._symbols = list(symbols)
        self._symbol_values = pa.array(self._symbols, pa.string())
        self._last_quote: Ids = np.full(len(self._symbols), -1, dtype=np.int64)
        self._void: dict[int, tuple[int, int]] = {}
        self.learn({})

    def learn(self, instruments: dict[str, Instrument]) -> None:
        """Use these currencies from now on; symbols that they lack are guessed."""
        known = [
            instruments[symbol].currency if symbol in instruments else guess_currency(symbol)
            for symbol in self._symbols
        ]
        values = sorted(set(known))
        self._currency_values = pa.array(values, pa.string())
        self._currency_codes = np.array([values.index(currency) for currency in known], dtype=np.int32)

    def cover(self, channel: str, rows: Sequence[Any], codes: Codes) -> tuple[Ids, Ids, Mask | None]:
        """Return each row's id, its `sequence_from`, and which rows are trades at all (None: all of them).

        Called once for each run of rows, dead ones included: an id that did arrive is not a gap to its neighbours.
        """
        if channel == "quotes":
            ids = np.array([row.u for row in rows], dtype=np.int64)
            return ids, columns.previous_ids(codes, ids, self._last_quote), None
        if channel == "trades":
            ids = np.array([row.t for row in rows], dtype=np.int64)
            return ids, ids - 1, None
        ids = np.array([row.a for row in rows], dtype=np.int64)
        starts = ids - 1
        void = np.array([row.f for row in rows], dtype=np.int64) < 0
        if not void.any() and not self._void:
            return ids, starts, None
        for at, (row, code) in enumerate(zip(rows, codes.tolist(), strict=True)):
            start, end = self._void.pop(code, (row.a - 1, row.a - 1))
            if end == row.a - 1:
                starts[at] = start
            if void[at]:
                self._void[code] = (int(starts[at]), row.a)
        return ids, starts, ~void

    def build(
        self, channel: str, rows: Sequence[Any], codes: Codes, received_us: Times, ids: Ids, starts: Ids
    ) -> pa.RecordBatch:
        """Return the batch of a channel in its wire schema.

        Args:
            channel: From `model.CHANNELS`.
            rows: Structs of `KINDS[channel]`.
            codes: Their symbols' codes.
            received_us: When each was received.
            ids: What `cover` returned for them.
            starts: And their `sequence_from`.

        Raises:
            pa.ArrowInvalid: A decimal of some row does not fit.
        """
        if channel == "quotes":
            return self._quotes(rows, codes, received_us, pa.array(ids), starts)
        return self._trades(channel, rows, codes, received_us, pa.array(ids), starts)

    def _trades(
        self, channel: str, rows: Sequence[Any], codes: Codes, received_us: Times, ids: pa.Array, starts: Ids
    ) -> pa.RecordBatch:
        count = len(rows)
        price, quantity = columns.decimals([row.p for row in rows], [row.q for row in rows])
        times = np.array([row.T for row in rows], dtype=np.int64)
        sells = np.array([row.m for row in rows], dtype=np.int32)
        best = [row.M for row in rows]
        extra: list[tuple[str, Mask | None, pa.Array]] = []
        if not all(best):
            extra.append(("M", ~np.array(best, dtype=np.bool_), pa.array(["false"] * count)))
        if channel == "agg_trades":
            extra += _aggregate_fields(rows, times)
        return pa.RecordBatch.from_arrays(
            [
                *self._head(codes),
                columns.texts_of(ids),
                columns.timestamps(columns.microseconds(times)),
                price,
                quantity,
                self._currency(codes),
                columns.dictionary(sells, _SIDES),
                columns.nulls(_CONDITIONS, count),
                *self._tail(channel, ids, received_us, columns.maps(count, extra)),
                pa.array(starts),
            ],
            schema=model.TRADES_WIRE,
        )

    def _quotes(
        self, rows: Sequence[Any], codes: Codes, received_us: Times, ids: pa.Array, starts: Ids
    ) -> pa.RecordBatch:
        prices = columns.decimals(*([getattr(row, name) for row in rows] for name in DECIMALS["quotes"]))
        return pa.RecordBatch.from_arrays(
            [
                *self._head(codes),
                columns.texts_of(ids),
                columns.timestamps(received_us),
                *prices,
                self._currency(codes),
                *self._tail("quotes", ids, received_us, columns.nulls(model.STRING_MAP, len(rows))),
                pa.array(starts),
            ],
            schema=model.QUOTES_WIRE,
        )

    def _head(self, codes: Codes) -> list[pa.Array]:
        return [
            columns.constant(self._exchange, len(codes)),
            columns.dictionary(codes, self._symbol_values),
            columns.constant(self._asset_class, len(codes)),
        ]

    def _tail(self, channel: str, ids: pa.Array, received_us: Times, vendor_data: pa.Array) -> list[pa.Array]:
        return [
            ids,
            columns.constant(model.CHANNELS[channel].space, len(ids)),
            columns.timestamps(received_us),
            columns.constant(self._origin, len(ids)),
            vendor_data,
        ]

    def _currency(self, codes: Codes) -> pa.Array:
        return columns.dictionary(self._currency_codes[codes], self._currency_values)


def _aggregate_fields(rows: Sequence[Any], times: Ids) -> list[tuple[str, Mask | None, pa.Array]]:
    first = np.array([row.f for row in rows], dtype=np.int64)
    last = np.array([row.l for row in rows], dtype=np.int64)
    sent = np.array([row.E for row in rows], dtype=np.int64)
    fields: list[tuple[str, Mask | None, pa.Array]] = [("f", None, columns.texts_of(pa.array(first)))]
    for key, values, default in (("l", last, first), ("E", sent, times)):
        differs = values != default
        if differs.any():
            fields.append((key, differs, columns.texts_of(pa.array(values))))
    return fields
