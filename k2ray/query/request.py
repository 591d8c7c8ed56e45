"""14. A validated question: text parameters become frozen values, or a `BadRequest` that says what is allowed.

Times are ISO-8601 with a zone, or integer microseconds since 1970. A time without a zone is refused, not guessed:
a host's zone once shifted a whole exchange's day. Integers that look like seconds or milliseconds are refused too.

Not here: HTTP (serve/), what a cursor holds (`cursor.py`). Next in the flow: `plan.py` finds the files.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from k2ray.errors import BadRequest
from k2ray.model import table_schema

Order = Literal["asc", "desc"]

DEFAULT_LIMIT = 1_000
MAX_LIMIT = 1_000_000
MAX_SYMBOLS = 500
MIN_US = -62_135_596_800_000_000  # year 1
MAX_US = 253_402_300_799_999_999  # the last microsecond of year 9999
ALL_SPACES = "all"

ROW_PARAMETERS = ("exchange", "symbols", "start", "end", "limit", "order", "fields", "space", "cursor")
BAR_PARAMETERS = ("exchange", "symbols", "start", "end", "interval", "limit", "order", "space", "cursor")

BAR_FIELDS = (
    "exchange",
    "symbol",
    "timestamp",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "vwap",
    "count",
    "exact",
)

_EXCHANGE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SPACE = re.compile(r"[a-z0-9:._-]{0,128}")
_INTERVAL = re.compile(r"([1-9][0-9]{0,5})(s|m|h|d)")
_UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DAY_S = 86_400
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_ISO = re.compile(
    r"(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})[T ](?P<time>[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.(?P<fraction>[0-9]+))?)?)"
    r"(?P<zone>[Zz]|[+ -][0-9]{2}:?[0-9]{2})?"
)
# Integers of this size are 1973 read as microseconds, but the last decades read as seconds or milliseconds.
_SUSPECT_US = range(100_000_000, 100_000_000_000_000)


@dataclass(frozen=True)
class Selection:
    """Which rows a question is about.

    Attributes:
        table: `trades` or `quotes`.
        exchange: One exchange, or None for all.
        symbols: The exchange's own symbols, sorted; empty for all.
        start_us: First microsecond that belongs; None for the beginning.
        end_us: First microsecond that no longer belongs; None for the end.
        space: Base of the sequence space: empty for the exchange's own ids, restarted ones (`#2`) included; None for
            every space.
    """

    table: str
    exchange: str | None
    symbols: tuple[str, ...]
    start_us: int | None
    end_us: int | None
    space: str | None


@dataclass(frozen=True)
class RowsRequest:
    """Rows of one table, in the table's total order."""

    selection: Selection
    order: Order
    fields: tuple[str, ...]
    limit: int
    cursor: str | None = None

    def digest(self) -> bytes:
        """Return what a cursor is bound to: everything but `limit`, `fields` and the cursor itself."""
        return _digest("rows", self.selection, self.order)


@dataclass(frozen=True)
class BarsRequest:
    """OHLCV bars of trades: those whose own start lies in the selection's [start, end).

    A bar is always made of all its trades, so it is the same in every answer that holds it.
    """

    selection: Selection
    order: Order
    interval_us: int
    limit: int
    cursor: str | None = None

    def digest(self) -> bytes:
        """Return what a cursor is bound to: everything but `limit` and the cursor itself."""
        return _digest("bars", self.selection, self.order, self.interval_us)


def parse_rows(table: str, parameters: Mapping[str, str]) -> RowsRequest:
    """Validate a question about rows.

    Args:
        table: `trades` or `quotes`.
        parameters: Name -> text, as in a URL; see `ROW_PARAMETERS`.

    Raises:
        BadRequest: A parameter is unknown or wrong; tell the client.
    """
    refuse_unknown(parameters, ROW_PARAMETERS)
    return RowsRequest(
        selection=parse_selection(table, parameters, allow_all_spaces=True),
        order=_order(parameters),
        fields=_fields(parameters, table_schema(table).names),
        limit=parse_limit(parameters),
        cursor=parameters.get("cursor"),
    )


def parse_bars(parameters: Mapping[str, str]) -> BarsRequest:
    """Validate a question about bars.

    Args:
        parameters: Name -> text, as in a URL; see `BAR_PARAMETERS`.

    Raises:
        BadRequest: A parameter is unknown or wrong; tell the client.
    """
    refuse_unknown(parameters, BAR_PARAMETERS)
    return BarsRequest(
        selection=parse_selection("trades", parameters),
        order=_order(parameters),
        interval_us=parse_interval(parameters.get("interval", "1m")) * 1_000_000,
        limit=parse_limit(parameters),
        cursor=parameters.get("cursor"),
    )


def refuse_unknown(parameters: Iterable[str], known: Iterable[str]) -> None:
    """Raise `BadRequest` for the first name that is not known, naming the nearest one that is."""
    allowed = list(known)
    for name in parameters:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise BadRequest(name, f"unknown parameter; {hint}allowed: {', '.join(allowed) or 'none'}")


def parse_time(field: str, text: str) -> int:
    """Return microseconds since 1970 of an ISO-8601 time with a zone, or of integer microseconds.

    Raises:
        BadRequest: No zone, finer than a microsecond, out of range, or not a time at all.
    """
    allowed = "allowed: ISO-8601 with a zone (2026-03-01T09:30:00Z) or integer microseconds since 1970"
    if _INTEGER.fullmatch(text):
        value = int(text)
        if abs(value) in _SUSPECT_US:
            raise BadRequest(field, f"{text} looks like seconds or milliseconds; {allowed}")
        return _in_range(field, value, allowed)
    match = _ISO.fullmatch(text)
    if match is None:
        raise BadRequest(field, f"{text!r} is not a time; {allowed}")
    zone = match["zone"]
    if zone is None:
        raise BadRequest(field, f"{text!r} names no time zone; {allowed}")
    if len(match["fraction"] or "") > 6:
        raise BadRequest(field, f"{text!r} is finer than a microsecond; {allowed}")
    # An unescaped plus sign arrives as a space.
    zone = "+00:00" if zone in {"Z", "z"} else zone.replace(" ", "+")
    try:
        moment = datetime.fromisoformat(f"{match['day']}T{match['time']}{zone}")
        offset = moment - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise BadRequest(field, f"{text!r} is not a time ({error}); {allowed}") from None
    return _in_range(field, (offset.days * _DAY_S + offset.seconds) * 1_000_000 + offset.microseconds, allowed)


def parse_interval(text: str) -> int:
    """Return the seconds of `1s`, `5m`, `1h`, `1d` and the like.

    Raises:
        BadRequest: Not an interval, or outside 1 s to 1 d.
    """
    allowed = "allowed: 1s to 1d as a whole number of s, m, h or d, such as 1s, 5s, 1m, 15m, 1h, 1d"
    match = _INTERVAL.fullmatch(text)
    if match is None:
        raise BadRequest("interval", f"{text!r} is not an interval; {allowed}")
    seconds = int(match[1]) * _UNIT_S[match[2]]
    if seconds > _DAY_S:
        raise BadRequest("interval", f"{text!r} is longer than a day; {allowed}")
    return seconds


def parse_selection(table: str, parameters: Mapping[str, str], *, allow_all_spaces: bool = False) -> Selection:
    """Validate exchange, symbols, range of time and space.

    Raises:
        BadRequest: One of them is wrong; tell the client.
    """
    start = parse_time("start", parameters["start"]) if "start" in parameters else None
    end = parse_time("end", parameters["end"]) if "end" in parameters else None
    if start is not None and end is not None and end < start:
        raise BadRequest("end", "lies before start; allowed: end (exclusive) at or after start (inclusive)")
    return Selection(
        table=table,
        exchange=_exchange(parameters),
        symbols=_symbols(parameters),
        start_us=start,
        end_us=end,
        space=_space(parameters, allow_all_spaces),
    )


def _exchange(parameters: Mapping[str, str]) -> str | None:
    text = parameters.get("exchange")
    if text is not None and not _EXCHANGE.fullmatch(text):
        raise BadRequest("exchange", f"{text!r} is not an exchange; allowed: one lower-case name such as binance")
    return text


def _symbols(parameters: Mapping[str, str]) -> tuple[str, ...]:
    if "symbols" not in parameters:
        return ()
    symbols = parameters["symbols"].split(",")
    for symbol in symbols:
        if not symbol or symbol != symbol.upper() or not symbol.isprintable() or " " in symbol or len(symbol) > 64:
            raise BadRequest(
                "symbols",
                f"{symbol!r} is not a symbol; allowed: upper-case symbols with commas between, such as BTCUSDT,ETHUSDT",
            )
    if len(set(symbols)) > MAX_SYMBOLS:
        raise BadRequest("symbols", f"names {len(set(symbols))} symbols; allowed: up to {MAX_SYMBOLS}, or none for all")
    return tuple(sorted(set(symbols)))


def _space(parameters: Mapping[str, str], allow_all: bool) -> str | None:
    text = parameters.get("space", "")
    if text == ALL_SPACES and allow_all:
        return None
    if text == ALL_SPACES or not _SPACE.fullmatch(text):
        more = f" or {ALL_SPACES}" if allow_all else "; a bar never mixes two numberings"
        raise BadRequest(
            "space", f"{text!r} is not allowed; allowed: nothing (the exchange's own ids), agg, file:...{more}"
        )
    return text


def _order(parameters: Mapping[str, str]) -> Order:
    text = parameters.get("order", "asc")
    if text == "asc":
        return "asc"
    if text == "desc":
        return "desc"
    raise BadRequest("order", f"{text!r} is not an order; allowed: asc, desc")


def _fields(parameters: Mapping[str, str], known: list[str]) -> tuple[str, ...]:
    if "fields" not in parameters:
        return tuple(known)
    fields = tuple(parameters["fields"].split(","))
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise BadRequest("fields", f"{name!r} is not a column; {hint}allowed: {', '.join(known)}")
    if len(set(fields)) != len(fields):
        raise BadRequest("fields", "names a column twice; allowed: each once")
    return fields


def parse_limit(parameters: Mapping[str, str]) -> int:
    """Return `limit`, or its default.

    Raises:
        BadRequest: It is no number from 1 to `MAX_LIMIT`.
    """
    text = parameters.get("limit", str(DEFAULT_LIMIT))
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_LIMIT:
        raise BadRequest("limit", f"{text!r} is not a limit; allowed: 1 to {MAX_LIMIT}")
    return int(text)


def _in_range(field: str, value: int, allowed: str) -> int:
    if not MIN_US <= value <= MAX_US:
        raise BadRequest(field, f"{value} us lies outside the years that can be asked for; {allowed}")
    return value


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
