"""Bars equal a plain calculation with Decimals, whatever the data's scales and however files are cut."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.errors import QueryTooLarge
from k2ray.query.engine import QueryEngine
from k2ray.query.request import parse_bars
from tests.support.market_tables import START_US, MarketTables, trade

EXACT = Context(prec=200)
SECOND = 1_000_000


def reference(rows: list[dict[str, Any]], interval_us: int) -> dict[tuple[int, str], dict[str, Any]]:
    """Return (bar's start, symbol) -> bar."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["timestamp"] // interval_us * interval_us, row["symbol"]), []).append(row)
    bars = {}
    for key, group in groups.items():
        ordered = sorted(group, key=lambda row: (row["timestamp"], row["source_sequence"]))
        volume = sum((row["quantity"] for row in group), Decimal(0))
        notional = Decimal(0)
        for row in group:
            notional = EXACT.add(notional, EXACT.multiply(row["price"], row["quantity"]))
        bars[key] = {
            "open": ordered[0]["price"],
            "high": max(row["price"] for row in group),
            "low": min(row["price"] for row in group),
            "close": ordered[-1]["price"],
            "volume": volume,
            "vwap": EXACT.divide(notional, volume).quantize(Decimal(1).scaleb(-18), context=EXACT) if volume else None,
            "count": len(group),
        }
    return bars


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> MarketTables:
    found = MarketTables(tmp_path_factory.mktemp("bars"))
    found.create("trades")
    return found


@pytest.fixture(scope="module")
def engine(tables: MarketTables) -> Iterator[QueryEngine]:
    found = QueryEngine(tables.catalog, tables.settings, tables.layout)
    yield found
    found.close()


def ask(engine: QueryEngine, **parameters: str) -> list[dict[str, Any]]:
    rows = engine.bars(parse_bars(parameters)).rows
    times = rows["timestamp"].cast("int64").to_pylist()
    return [{**row, "timestamp": time} for row, time in zip(rows.to_pylist(), times, strict=True)]


def decimals(digits: int, places: int) -> st.SearchStrategy[Decimal]:
    return st.integers(0, 10**digits).map(lambda number: Decimal(number).scaleb(-places))


prices = st.one_of(decimals(9, 2), decimals(9, 8), decimals(14, 12), decimals(17, 18))
quantities = st.one_of(decimals(8, 5), decimals(3, 0), decimals(12, 1), decimals(10, 9))
trades = st.lists(
    st.tuples(st.sampled_from(("AAA", "BBB")), st.integers(0, 100 * SECOND), prices, quantities, st.booleans()),
    min_size=1,
    max_size=25,
)


@given(trades, st.sampled_from(("1s", "7s", "1m", "1h")), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_bars_equal_the_reference(
    tables: MarketTables, engine: QueryEngine, given_trades: list[Any], interval: str, exchange_number: int
) -> None:
    # An exchange of its own for each example keeps the examples apart in one table.
    exchange = f"x{exchange_number}_{len(engine.list_snapshots('trades', 10**6).rows)}"
    rows = [
        trade(number, exchange=exchange, symbol=symbol, at_us=START_US + offset, price=price, quantity=quantity)
        for number, (symbol, offset, price, quantity, _) in enumerate(given_trades)
    ]
    halves = [[row for row, one in zip(rows, given_trades, strict=True) if one[4] is side] for side in (False, True)]
    for half in halves:
        if half:
            tables.append("trades", half)
    expected = reference(rows, {"1s": 1, "7s": 7, "1m": 60, "1h": 3600}[interval] * SECOND)
    found = ask(engine, exchange=exchange, interval=interval)
    assert [(bar["timestamp"], bar["symbol"]) for bar in found] == sorted(expected)
    for bar in found:
        wanted = expected[bar["timestamp"], bar["symbol"]]
        for name in ("open", "high", "low", "close", "volume", "count"):
            assert bar[name] == wanted[name], name
        assert bar["vwap"] == wanted["vwap"]
        assert bar["exact"] is True


def test_fractional_volume_is_not_truncated_and_sums_are_decimals(tables: MarketTables, engine: QueryEngine) -> None:
    """TRAPS 12: fractional crypto volume was truncated by int(), and decimals became floats."""
    tables.append(
        "trades",
        [trade(n, exchange="fractions", price="0.1", quantity="0.1", at_us=START_US + n) for n in range(3)],
    )
    [bar] = ask(engine, exchange="fractions")
    assert bar["volume"] == Decimal("0.3")
    assert bar["vwap"] == Decimal("0.1")
    assert isinstance(bar["volume"], Decimal)
    assert bar["exact"] is True


def test_small_prices_and_large_quantities_multiply_exactly(tables: MarketTables, engine: QueryEngine) -> None:
    """TRAPS 2 and 13: quantity 12345678901.5 and price 0.00012345 did not fit narrower decimals."""
    tables.append(
        "trades",
        [trade(n, exchange="wide", price="0.00012345", quantity="12345678901.5", at_us=START_US) for n in range(4)],
    )
    [bar] = ask(engine, exchange="wide")
    assert (bar["exact"], bar["vwap"], bar["volume"]) == (True, Decimal("0.00012345"), Decimal("49382715606.0"))


def test_products_of_more_digits_than_any_decimal_has_are_exact(tables: MarketTables, engine: QueryEngine) -> None:
    """18 and 11 decimals make products of 29, which no decimal(38) sum of them holds; doubles would lose 13 of them."""
    rows = [
        trade(n, exchange="fine", symbol="AB"[n % 2], price=price, quantity=f"{n}3.0000000000{n}", at_us=START_US + n)
        for n, price in enumerate(("1.000000000000000001", "2", "12345678901234567.000000000000000003", "4.5"))
    ]
    tables.append("trades", rows)
    expected = reference(rows, 60 * SECOND)
    for bar in ask(engine, exchange="fine"):
        wanted = expected[bar["timestamp"], bar["symbol"]]
        assert {name: bar[name] for name in wanted} == wanted
        assert bar["exact"] is True


def test_negative_prices_make_bars_too(tables: MarketTables, engine: QueryEngine) -> None:
    rows = [
        trade(n, exchange="negative", price=price, quantity="7.5", at_us=START_US + n)
        for n, price in enumerate(("-37.63", "0", "10.01", "-40.00000001"))
    ]
    tables.append("trades", rows)
    [bar] = ask(engine, exchange="negative")
    [wanted] = reference(rows, 60 * SECOND).values()
    assert {name: bar[name] for name in wanted} == wanted


def test_rows_without_sequence_come_first_and_ties_go_by_price(tables: MarketTables, engine: QueryEngine) -> None:
    rows = [
        trade(n, price=price, source_sequence=sequence, at_us=START_US)
        for n, (price, sequence) in enumerate((("5", 1), ("3", None), ("2", None), ("9", 1)))
    ]
    for order in ((0, 1, 2, 3), (3, 2, 1, 0)):
        exchange = f"unnumbered_{order[0]}"
        tables.append("trades", [{**rows[place], "exchange": exchange} for place in order])
        [bar] = ask(engine, exchange=exchange)
        assert (bar["open"], bar["close"]) == (2, 9)


def test_a_volume_of_more_than_20_digits_is_refused(tables: MarketTables, engine: QueryEngine) -> None:
    tables.append("trades", [trade(n, exchange="huge", quantity="9" * 20, at_us=START_US) for n in range(2)])
    with pytest.raises(QueryTooLarge, match="20 digits"):
        ask(engine, exchange="huge")


def test_first_and_last_follow_the_sequence_within_one_microsecond(tables: MarketTables, engine: QueryEngine) -> None:
    """TRAPS 17: first and last depended on shuffle order."""
    rows = [trade(n, exchange="ties", price=str(n), at_us=START_US) for n in range(1, 9)]
    for row in (rows[4], rows[0], rows[7], *rows[1:4], *rows[5:7]):
        tables.append("trades", [row])
    [bar] = ask(engine, exchange="ties")
    assert (bar["open"], bar["close"]) == (1, 8)


def test_a_bar_never_mixes_numberings(tables: MarketTables, engine: QueryEngine) -> None:
    """Aggregated trades repeat the trades: together they would double the volume. Restarted ids are the same kind."""
    tables.append(
        "trades",
        [
            trade(1, exchange="spaces", quantity="1"),
            trade(1, exchange="spaces", quantity="2", sequence_space="#2"),
            trade(1, exchange="spaces", quantity="4", sequence_space="agg"),
            trade(1, exchange="spaces", quantity="8", sequence_space="agg#2"),
            trade(1, exchange="spaces", quantity="16", sequence_space="file:ab12"),
        ],
    )
    assert [ask(engine, exchange="spaces", space=space)[0]["volume"] for space in ("", "agg", "file:ab12")] == [
        3,
        12,
        16,
    ]


def test_a_bar_is_the_same_in_every_answer(tables: MarketTables, engine: QueryEngine) -> None:
    """TRAPS 17: partial, recomputed bars. start and end choose bars by their own start and never cut one."""
    tables.append("trades", [trade(n, exchange="cut") for n in range(180)])
    bars = ask(engine, exchange="cut")
    assert [bar["count"] for bar in bars] == [60, 60, 60]
    late = ask(engine, exchange="cut", start=str(START_US + 1), end=str(START_US + 60 * SECOND + 1))
    assert late == bars[1:2]


def test_pages_of_bars_are_the_whole(tables: MarketTables, engine: QueryEngine) -> None:
    rows = [trade(n, exchange="paged", symbol="AB"[n % 2]) for n in range(50)]
    for start in range(0, 50, 10):
        tables.append("trades", rows[start : start + 10])
    for order in ("asc", "desc"):
        whole = ask(engine, exchange="paged", interval="7s", order=order)
        paged: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            request = parse_bars({"exchange": "paged", "interval": "7s", "order": order, "limit": "3", **cursor})
            answer = engine.bars(request)
            paged += answer.rows.to_pylist()
            if answer.next_cursor is None:
                break
            cursor = {"cursor": answer.next_cursor}
        assert [row["open"] for row in paged] == [row["open"] for row in whole]
        assert len(paged) == len(whole) == 15


def test_no_trades_means_no_bars(engine: QueryEngine, tmp_path: Path) -> None:
    assert ask(engine, exchange="nobody") == []
