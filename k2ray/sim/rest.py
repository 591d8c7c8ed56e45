"""Binance's public REST, as far as a recorder needs it: trades by id, aggregate trades, books, symbols, time.

Answers follow from the market and the times in `history.py`, so any trade of the current numbering can be asked for,
also those that a fault kept from the stream. The simulator's own questions (`/_sim/...`) are `exchange.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from k2ray.errors import BadRequest
from k2ray.sim.book import Books
from k2ray.sim.history import History
from k2ray.sim.http import HttpRequest, HttpResponse
from k2ray.sim.market import MATCH_LEAD_US, Channel, Market, decimal_text, split_symbol
from k2ray.sim.weights import DEFAULT_DEPTH_LIMIT

DEFAULT_LIMIT = 500
MAX_LIMIT = 1000
MAX_DEPTH_LIMIT = 5000


def answer_json(value: object, status: int = 200) -> HttpResponse:
    """Return a JSON answer."""
    return HttpResponse(status, msgspec.json.encode(value))


def refuse(code: int, message: str, status: int = 400) -> HttpResponse:
    """Return an error as Binance writes it."""
    return answer_json({"code": code, "msg": message}, status)


def exchange_info(symbols: Iterable[str]) -> dict[str, Any]:
    """Return `exchangeInfo` of symbols; base and quote asset come from their names."""
    return {
        "timezone": "UTC",
        "serverTime": time.time_ns() // 1_000_000,
        "rateLimits": [
            {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 6000},
        ],
        "exchangeFilters": [],
        "symbols": [_symbol_info(symbol) for symbol in symbols],
    }


def _symbol_info(symbol: str) -> dict[str, Any]:
    base, quote = split_symbol(symbol)
    return {
        "symbol": symbol,
        "status": "TRADING",
        "baseAsset": base,
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "MARKET"],
        "isSpotTradingAllowed": True,
        "filters": [],
        "permissions": ["SPOT"],
    }


def answer_info(symbols: Sequence[str], query: Mapping[str, str]) -> HttpResponse:
    """Answer `exchangeInfo`, of all symbols, one (`symbol=`) or some (`symbols=["A","B"]`)."""
    wanted = list(symbols)
    if "symbol" in query:
        wanted = [query["symbol"]]
    elif "symbols" in query:
        try:
            wanted = msgspec.json.decode(query["symbols"], type=list[str])
        except msgspec.DecodeError:
            return refuse(-1100, "Illegal characters found in parameter 'symbols'.")
    if not set(wanted) <= set(symbols):
        return refuse(-1121, "Invalid symbol.")
    return answer_json(exchange_info(wanted))


def answer_time(request: HttpRequest, now_us: int | None = None) -> HttpResponse:
    """Answer `time`; without `now_us` the machine's."""
    now_us = time.time_ns() // 1_000 if now_us is None else now_us
    return answer_json({"serverTime": now_us if _in_microseconds(request) else now_us // 1_000})


class MarketRest:
    """Answers `/api/v3/...` about a market.

    Args:
        market: What happened.
        histories: When, by symbol.
        books: Their order books.
        now_us: The exchange's clock; None: the machine's.
    """

    def __init__(
        self, market: Market, histories: Sequence[History], books: Books, now_us: Callable[[], int] | None = None
    ) -> None:
        self._market = market
        self._histories = histories
        self._books = books
        self._now_us = now_us

    def answer(self, request: HttpRequest) -> HttpResponse:
        """Answer a request, known or not."""
        if request.method != "GET":
            return refuse(-1100, "only GET is answered here", 405)
        try:
            match request.path:
                case "/api/v3/ping":
                    return answer_json({})
                case "/api/v3/time":
                    return answer_time(request, self._now_us() if self._now_us is not None else None)
                case "/api/v3/exchangeInfo":
                    return answer_info(list(self._market.index), request.query)
                case "/api/v3/historicalTrades" | "/api/v3/trades":
                    return answer_json(self._trades(request))
                case "/api/v3/aggTrades":
                    return answer_json(self._aggregates(request))
                case "/api/v3/depth":
                    limit = _integer(request, "limit") or DEFAULT_DEPTH_LIMIT
                    return answer_json(self._books.snapshot(self._symbol(request), min(limit, MAX_DEPTH_LIMIT)))
                case "/api/v3/ticker/24hr":
                    return answer_json(self._tickers(request))
                case _:
                    return refuse(-1, "no such path", 404)
        except BadRequest as error:
            return refuse(-1121 if error.field == "symbol" else -1100, error.reason, error.status)

    def _trades(self, request: HttpRequest) -> list[dict[str, Any]]:
        symbol, limit = self._symbol(request), _limit(request)
        state, history = self._market.symbols[symbol], self._histories[symbol]
        from_id = _integer(request, "fromId")
        base = state.first_ids[-1][Channel.TRADE]
        first = history.end - limit if from_id is None else from_id - base
        first = max(first, history.begin)
        ordinals = range(first, min(first + limit, history.end))
        if not ordinals:
            return []
        rows = np.fromiter(ordinals, dtype=np.int64) % self._market.loop_length(Channel.TRADE, symbol)
        tape, micro = state.tape, _in_microseconds(request)
        price, quantity = tape.prices[rows], tape.quantities[rows]
        return [
            {
                "id": base + ordinal,
                "price": price_text,
                "qty": quantity_text,
                "quoteQty": _product(price_units, quantity_units),
                "time": _time(event_us, micro),
                "isBuyerMaker": maker,
                "isBestMatch": True,
            }
            for ordinal, price_text, quantity_text, price_units, quantity_units, event_us, maker in zip(
                ordinals,
                decimal_text(price),
                decimal_text(quantity),
                price.tolist(),
                quantity.tolist(),
                history.times(ordinals),
                tape.buyer_is_maker[rows].tolist(),
                strict=True,
            )
        ]

    def _aggregates(self, request: HttpRequest) -> list[dict[str, Any]]:
        symbol, limit = self._symbol(request), _limit(request)
        state, history = self._market.symbols[symbol], self._histories[symbol]
        tape, micro = state.tape, _in_microseconds(request)
        from_id = _integer(request, "fromId")
        start, end = _integer(request, "startTime"), _integer(request, "endTime")
        base = state.first_ids[-1][Channel.AGG_TRADE]
        unit = 1 if micro else 1000
        complete = tape.aggregates_after(history.end)
        if from_id is not None:
            first = from_id - base
        elif start is not None:
            first = tape.aggregates_after(history.first_at(start * unit + MATCH_LEAD_US))
        else:
            first = complete - limit
        first = max(first, tape.aggregates_after(history.begin + 1) if history.begin else 0)
        ordinals = np.arange(first, max(first, min(first + limit, complete)), dtype=np.int64)
        firsts, lasts = self._market.trade_ids_of_aggregates(symbol, state.epoch, ordinals)
        times = history.times((lasts - state.first_ids[-1][Channel.TRADE]).tolist())
        rows = ordinals % tape.groups
        answer = [
            {
                "a": base + ordinal,
                "p": price,
                "q": quantity,
                "f": f,
                "l": last,
                "T": _time(at, micro),
                "m": m,
                "M": True,
            }
            for ordinal, price, quantity, f, last, at, m in zip(
                ordinals.tolist(),
                decimal_text(tape.group_prices[rows]),
                decimal_text(tape.group_quantities[rows]),
                firsts.tolist(),
                lasts.tolist(),
                times,
                tape.group_makers[rows].tolist(),
                strict=True,
            )
        ]
        return [row for row in answer if end is None or row["T"] <= end]

    def _tickers(self, request: HttpRequest) -> list[dict[str, Any]]:
        """Answer which trade ids there are; of a 24 h ticker's fields only what follows from the ids."""
        try:
            names = msgspec.json.decode(request.query.get("symbols", "[]"), type=list[str])
        except msgspec.DecodeError:
            raise BadRequest("symbols", "Illegal characters found in parameter 'symbols'.") from None
        if not set(names) <= set(self._market.index):
            raise BadRequest("symbol", "Invalid symbol.")
        answer = []
        for name in names or list(self._market.index):
            symbol = self._market.index[name]
            history, base = self._histories[symbol], self._market.symbols[symbol].first_ids[-1][Channel.TRADE]
            count = history.end - history.begin
            first, last = (base + history.begin, base + history.end - 1) if count else (-1, -1)
            answer.append({"symbol": name, "firstId": first, "lastId": last, "count": count})
        return answer

    def _symbol(self, request: HttpRequest) -> int:
        symbol = self._market.index.get(request.query.get("symbol", ""))
        if symbol is None:
            raise BadRequest("symbol", "Invalid symbol.")
        return symbol


def _limit(request: HttpRequest) -> int:
    limit = _integer(request, "limit")
    return DEFAULT_LIMIT if limit is None else max(1, min(limit, MAX_LIMIT))


def _integer(request: HttpRequest, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise BadRequest(name, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.")
    return int(text)


def _in_microseconds(request: HttpRequest) -> bool:
    return request.headers.get("x-mbx-time-unit", "").upper() == "MICROSECOND"


def _time(event_us: int, microseconds: bool) -> int:
    trade_us = event_us - MATCH_LEAD_US
    return trade_us if microseconds else trade_us // 1000


def _product(price: int, quantity: int) -> str:
    units = price * quantity // 100_000_000
    return f"{units // 100_000_000}.{units % 100_000_000:08d}"
