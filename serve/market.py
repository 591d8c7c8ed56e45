"""The market's data over HTTP: trades, quotes, bars, symbols, snapshots.

An answer is complete before its status is sent, so a failure is never a 200 that breaks off; large ones are then
written in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from k2ray.errors import BadRequest
from k2ray.query.engine import Answer, QueryEngine
from k2ray.query.request import BAR_PARAMETERS, MAX_LIMIT, ROW_PARAMETERS, parse_bars, parse_rows
from serve.answers import answer, documented
from serve.formats import FORMATS
from serve.parameters import choose_table
from serve.work import Workers

SYMBOL_PARAMETERS = ("table", "exchange")
SNAPSHOT_PARAMETERS = ("table", "limit")
DEFAULT_SNAPSHOTS = 100

# FastAPI leaves nulls out of its documents.
_ENVELOPE = {"next_cursor": "zViSuQL6I7y9HpQBz0-8JeegF8tPxAj3IH7JkGTR8A", "snapshot": "4861203742364821347"}
EXAMPLES: dict[str, dict[str, Any]] = {
    "trades": {
        "exchange": "binance",
        "symbol": "BTCUSDT",
        "asset_class": "crypto",
        "trade_id": "3601210987",
        "timestamp": "2026-03-01T09:30:00.123456Z",
        "price": "67000.12",
        "quantity": "0.015",
        "currency": "USDT",
        "side": "BUY",
        "trade_conditions": None,
        "source_sequence": 3601210987,
        "sequence_space": "",
        "ingestion_timestamp": "2026-03-01T09:30:00.161201Z",
        "origin": "live",
        "vendor_data": None,
    },
    "quotes": {
        "exchange": "binance",
        "symbol": "BTCUSDT",
        "quote_id": "41287653921",
        "timestamp": "2026-03-01T09:30:00.123456Z",
        "bid_price": "67000.11",
        "bid_quantity": "1.5",
        "ask_price": "67000.12",
        "ask_quantity": "0.25",
    },
    "bars": {
        "exchange": "binance",
        "symbol": "BTCUSDT",
        "timestamp": "2026-03-01T09:30:00.000000Z",
        "open": "67000.12",
        "high": "67010",
        "low": "66990.5",
        "close": "67001",
        "volume": "12.3456",
        "vwap": "67000.482917364519283746",
        "count": 812,
        "exact": True,
    },
    "symbols": {
        "exchange": "binance",
        "symbol": "BTCUSDT",
        "asset_class": "crypto",
        "currency": "USDT",
        "rows": 1287365,
        "first_timestamp": "2026-02-27T14:00:00.000312Z",
        "last_timestamp": "2026-03-01T09:30:00.123456Z",
    },
    "snapshots": {
        "snapshot_id": "4861203742364821347",
        "parent_id": "1203948576102938475",
        "committed_at": "2026-03-01T09:30:02.412000Z",
        "operation": "append",
        "added_rows": 4120,
        "total_rows": 1287365,
        "total_files": 312,
        "tags": [],
    },
}


def market_routes(engine: Callable[[], QueryEngine], workers: Workers) -> APIRouter:
    """Return the routes.

    Args:
        engine: Returns the engine, opened; may raise `TryAgain`. Called in a worker's thread.
        workers: Where blocking work goes.
    """
    router = APIRouter(prefix="/v1", tags=["market"])

    @router.get("/trades", summary="Trades in time order", **_documented("trades", ROW_PARAMETERS))
    async def trades(request: Request) -> Response:
        return await answer(workers, request, ROW_PARAMETERS, lambda given: _rows(engine, "trades", given))

    @router.get("/quotes", summary="Best bids and asks in time order", **_documented("quotes", ROW_PARAMETERS))
    async def quotes(request: Request) -> Response:
        return await answer(workers, request, ROW_PARAMETERS, lambda given: _rows(engine, "quotes", given))

    @router.get("/bars", summary="OHLCV, VWAP and count of trades", **_documented("bars", BAR_PARAMETERS))
    async def bars(request: Request) -> Response:
        return await answer(workers, request, BAR_PARAMETERS, lambda given: _bars(engine, given))

    @router.get("/symbols", summary="Instruments of a table", **_documented("symbols", SYMBOL_PARAMETERS))
    async def symbols(request: Request) -> Response:
        return await answer(workers, request, SYMBOL_PARAMETERS, lambda given: _symbols(engine, given))

    @router.get("/snapshots", summary="Snapshots of a table", **_documented("snapshots", SNAPSHOT_PARAMETERS))
    async def snapshots(request: Request) -> Response:
        return await answer(workers, request, SNAPSHOT_PARAMETERS, lambda given: _snapshots(engine, given))

    return router


def _rows(engine: Callable[[], QueryEngine], table: str, given: Mapping[str, str]) -> Callable[[], Answer]:
    asked = parse_rows(table, given)
    return lambda: engine().rows(asked)


def _bars(engine: Callable[[], QueryEngine], given: Mapping[str, str]) -> Callable[[], Answer]:
    asked = parse_bars(given)
    return lambda: engine().bars(asked)


def _symbols(engine: Callable[[], QueryEngine], given: dict[str, str]) -> Callable[[], Answer]:
    table = choose_table(given)
    return lambda: engine().symbols(table, given.get("exchange"))


def _snapshots(engine: Callable[[], QueryEngine], given: dict[str, str]) -> Callable[[], Answer]:
    table = choose_table(given)
    limit = given.get("limit", str(DEFAULT_SNAPSHOTS))
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= MAX_LIMIT:
        raise BadRequest("limit", f"{limit!r} is not a limit; allowed: 1 to {MAX_LIMIT}")
    return lambda: engine().list_snapshots(table, int(limit))


def _documented(name: str, parameters: tuple[str, ...]) -> dict[str, Any]:
    meaning = "An answer; empty data means that the snapshot holds no such row."
    content = {
        FORMATS["json"].media_type: {"example": {"data": [EXAMPLES[name]], **_ENVELOPE}},
        FORMATS["arrow"].media_type: {"schema": {"type": "string", "format": "binary"}},
    }
    return documented(name, (*parameters, "format"), meaning, content, (410, 422))
