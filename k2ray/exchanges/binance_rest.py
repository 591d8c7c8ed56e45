"""Binance Spot's REST answers to rows, through the same builder as live frames: same columns, `origin` is `backfill`.

| question | path | weight |
|---|---|---|
| trades from an id | /api/v3/historicalTrades?fromId= | 25 |
| aggregate trades from an id | /api/v3/aggTrades?fromId= | 4 |
| newest trade id of up to 20 symbols | /api/v3/ticker/24hr?symbols= (`lastId`) | 2 |
| newest aggregate id of a symbol | /api/v3/aggTrades?limit=1 | 4 |

Times are asked for in microseconds. REST aggTrades have no E, so `vendor_data` has none either; all else is as live.
The weights are Binance's own (rest-api.md, "Market data endpoints"): 6,000 a minute and address.

Not here: sending, budgets, retries (`backfill/fetch.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2ray.errors import BadFrame
from k2ray.exchanges import columns
from k2ray.exchanges.base import DeadFrame, Instrument, RestPage, RestQuestion
from k2ray.exchanges.binance_rows import DECIMALS, RowBuilder

SYMBOLS_A_TICKER = 20
"""A 24 h ticker costs 2 up to so many symbols, and 40 above."""

PAGE_ROWS = 1000
NO_TRADE = -1
"""`lastId` of a symbol that did not trade for 24 h."""

_WEIGHT = {"trades": 25, "agg_trades": 4}
_PATH = {"trades": "/api/v3/historicalTrades", "agg_trades": "/api/v3/aggTrades"}
_TICKER_WEIGHT = 2
_MICROSECONDS = {"X-MBX-TIME-UNIT": "MICROSECOND"}

_Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_IdOrVoid = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
_Time = Annotated[int, msgspec.Meta(gt=0, le=253_402_300_799_999_999)]


class RestTrade(msgspec.Struct, gc=False):
    """A historical trade under the names of a @trade frame, which `RowBuilder` reads."""

    t: _Id = msgspec.field(name="id")
    p: str = msgspec.field(name="price")
    q: str = msgspec.field(name="qty")
    T: _Time = msgspec.field(name="time")
    m: bool = msgspec.field(name="isBuyerMaker")
    M: bool = msgspec.field(name="isBestMatch", default=True)


class RestAggTrade(msgspec.Struct, gc=False):
    """An aggregate trade; it has no E, and one that equals T leaves none in `vendor_data`."""

    a: _Id
    p: str
    q: str
    f: _IdOrVoid
    l: _IdOrVoid  # noqa: E741 - Binance's name
    T: _Time
    m: bool
    M: bool = True

    @property
    def E(self) -> int:
        """The trade's time in place of the event's."""
        return self.T


class _Ticker(msgspec.Struct):
    symbol: str
    lastId: int


class _NewestAggregate(msgspec.Struct):
    a: _Id


_ROWS: dict[str, Any] = {
    "trades": msgspec.json.Decoder(list[RestTrade]),
    "agg_trades": msgspec.json.Decoder(list[RestAggTrade]),
}
_tickers = msgspec.json.Decoder(list[_Ticker])
_aggregates = msgspec.json.Decoder(list[_NewestAggregate])


class BinanceRest:
    """Binance Spot's REST; see the module's docstring."""

    name = "binance"
    asset_class = "crypto"
    weight_a_minute = 6_000
    used_weight_header = "x-mbx-used-weight-1m"

    def __init__(self) -> None:
        self._instruments: dict[str, Instrument] = {}

    def page(self, channel: str, symbol: str, first_id: int, rows: int) -> RestQuestion:
        """Return the question for the rows from `first_id` on."""
        limit = max(1, min(rows, PAGE_ROWS))
        path = f"{_PATH[channel]}?symbol={quote(symbol, safe='')}&fromId={first_id}&limit={limit}"
        return RestQuestion(path, _MICROSECONDS, _WEIGHT[channel], (symbol,))

    def page_rows(self, channel: str) -> int:
        """Return Binance's own limit."""
        return PAGE_ROWS

    def read_page(self, channel: str, symbol: str, body: bytes, received_us: int) -> RestPage:
        """Read trades or aggregate trades; one whose price does not fit is dead by itself.

        Raises:
            BadFrame: It is not the documented JSON; try again later.
        """
        try:
            found = _ROWS[channel].decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadFrame(f"{_PATH[channel]}: {error}") from None
        page = RestPage()
        if not found:
            return page
        builder = RowBuilder(self.name, self.asset_class, [symbol], origin="backfill")
        builder.learn(self._instruments)
        ids, starts, keep = builder.cover(channel, found, np.zeros(len(found), dtype=np.int32))
        good = np.ones(len(found), dtype=np.bool_) if keep is None else keep
        page.void = ids[~good].tolist()
        try:
            page.rows = _build(builder, channel, found, good, received_us, ids, starts)
        except pa.ArrowInvalid:
            good &= [_fits(channel, row, page, at, received_us) for row, at in zip(found, ids.tolist(), strict=True)]
            page.rows = _build(builder, channel, found, good, received_us, ids, starts)
        return page

    def newest(self, channel: str, symbols: Sequence[str]) -> list[RestQuestion]:
        """Return ticker questions for trades, and one question a symbol for aggregate trades."""
        if channel == "agg_trades":
            return [
                RestQuestion(
                    f"{_PATH[channel]}?symbol={quote(symbol, safe='')}&limit=1",
                    _MICROSECONDS,
                    _WEIGHT[channel],
                    (symbol,),
                )
                for symbol in symbols
            ]
        questions = []
        for at in range(0, len(symbols), SYMBOLS_A_TICKER):
            asked = tuple(symbols[at : at + SYMBOLS_A_TICKER])
            listed = quote(msgspec.json.encode(asked).decode(), safe="")
            path = f"/api/v3/ticker/24hr?type=MINI&symbols={listed}"
            questions.append(RestQuestion(path, {}, _TICKER_WEIGHT, asked))
        return questions

    def read_newest(self, channel: str, question: RestQuestion, body: bytes) -> dict[str, int]:
        """Read a ticker's `lastId`s, or the newest aggregate trade of the one symbol that was asked for.

        Raises:
            BadFrame: It is not the documented JSON; try again later.
        """
        try:
            if channel == "agg_trades":
                newest = _aggregates.decode(body)
                return {question.symbols[0]: max(row.a for row in newest)} if newest else {}
            return {row.symbol: row.lastId for row in _tickers.decode(body) if row.lastId != NO_TRADE}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadFrame(f"{question.path.partition('?')[0]}: {error}") from None

    def learn(self, instruments: dict[str, Instrument]) -> None:
        """Use these currencies from now on; symbols that they lack are guessed."""
        self._instruments = instruments


def _build(
    builder: RowBuilder,
    channel: str,
    found: list[Any],
    good: npt.NDArray[np.bool_],
    received_us: int,
    ids: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
) -> pa.RecordBatch | None:
    rows = [row for row, is_good in zip(found, good.tolist(), strict=True) if is_good]
    if not rows:
        return None
    times = np.full(len(rows), received_us, dtype=np.int64)
    codes = np.zeros(len(rows), dtype=np.int32)
    return builder.build(channel, rows, codes, times, ids[good], starts[good])


def _fits(channel: str, row: Any, page: RestPage, row_id: int, received_us: int) -> bool:
    """Tell whether a row's decimals fit; if not, it is among the page's dead."""
    try:
        columns.decimals([getattr(row, name) for name in DECIMALS[channel]])
    except pa.ArrowInvalid as error:
        page.dead.append((row_id, DeadFrame(msgspec.json.encode(row), f"id {row_id}: {error}", received_us)))
        return False
    return True
