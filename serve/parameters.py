"""The query string: read strictly, and described for OpenAPI under the names that questions are checked with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from k2ray.errors import BadRequest
from k2ray.model import CHANNELS
from k2ray.query.gaps import STATES
from k2ray.query.request import DEFAULT_LIMIT, MAX_LIMIT, refuse_unknown
from serve.formats import FORMATS

_TIME = "ISO-8601 with a zone, or integer microseconds since 1970. A time without a zone is refused."

DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "exchange": {
        "description": "One exchange; all without it.",
        "schema": {"type": "string"},
        "example": "binance",
    },
    "symbols": {
        "description": "The exchange's own symbols with commas between; all without it.",
        "schema": {"type": "string"},
        "example": "BTCUSDT,ETHUSDT",
    },
    "start": {
        "description": f"Inclusive. {_TIME}",
        "schema": {"type": "string"},
        "example": "2026-03-01T09:00:00Z",
    },
    "end": {
        "description": f"Exclusive. {_TIME}",
        "schema": {"type": "string"},
        "example": "2026-03-01T10:00:00Z",
    },
    "limit": {
        "description": "Most rows in one answer.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        "example": 100,
    },
    "order": {
        "description": "By timestamp, exchange, symbol, sequence space, sequence and id.",
        "schema": {"type": "string", "enum": ["asc", "desc"], "default": "asc"},
        "example": "desc",
    },
    "fields": {
        "description": "Columns with commas between, in this order; all without it.",
        "schema": {"type": "string"},
        "example": "timestamp,symbol,price,quantity",
    },
    "space": {
        "description": "Which numbering: nothing for the exchange's own ids, agg for aggregated trades, "
        "file:<digest>; all for every one (not for bars).",
        "schema": {"type": "string", "default": ""},
        "example": "agg",
    },
    "cursor": {
        "description": "next_cursor of an earlier answer, with the same other parameters; limit and fields may differ. "
        "Pages read one snapshot, kept for api.cursor_lease_s after each page; 410 once it has expired.",
        "schema": {"type": "string"},
    },
    "interval": {
        "description": "1s to 1d as a whole number of s, m, h or d; bars are aligned to 1970 UTC.",
        "schema": {"type": "string", "default": "1m"},
        "example": "1m",
    },
    "table": {
        "description": "Which table.",
        "schema": {"type": "string", "enum": ["trades", "quotes"], "default": "trades"},
        "example": "trades",
    },
    "channel": {
        "description": "Whose ids.",
        "schema": {"type": "string", "enum": list(CHANNELS), "default": "trades"},
        "example": "trades",
    },
    "first_id": {
        "description": "Inclusive; a range of ids in place of one of time.",
        "schema": {"type": "integer", "minimum": 0},
        "example": 3601210987,
    },
    "last_id": {"description": "Inclusive.", "schema": {"type": "integer", "minimum": 0}, "example": 3601310987},
    "state": {
        "description": "What became of a gap; all without it.",
        "schema": {"type": "string", "enum": list(STATES)},
        "example": "lost",
    },
    "format": {
        "description": "Of the answer; without it the Accept header counts.",
        "schema": {"type": "string", "enum": list(FORMATS), "default": "json"},
        "example": "json",
    },
}


def read_query(request: Request, known: Iterable[str]) -> dict[str, str]:
    """Return the query string's parameters.

    Raises:
        BadRequest: One is unknown or given twice.
    """
    parameters: dict[str, str] = {}
    pairs = parse_qsl(request.url.query, keep_blank_values=True)
    refuse_unknown((name for name, _ in pairs), known)
    for name, value in pairs:
        if name in parameters:
            raise BadRequest(name, "is given more than once; allowed: once, with commas between several values")
        parameters[name] = value
    return parameters


def openapi_parameters(names: Iterable[str]) -> dict[str, Any]:
    """Return `openapi_extra` that documents query parameters."""
    return {"parameters": [{"name": name, "in": "query", "required": False, **DESCRIPTIONS[name]} for name in names]}


def choose_table(parameters: dict[str, str]) -> str:
    """Return the table that `table=` names.

    Raises:
        BadRequest: There is none of that name.
    """
    table = parameters.get("table", "trades")
    if table not in {"trades", "quotes"}:
        raise BadRequest("table", f"{table!r} is not a table; allowed: trades, quotes")
    return table
