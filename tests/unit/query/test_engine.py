"""Answers from a real table in a folder: exact, in total order, from one snapshot, and never an empty guess."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from k2ray.errors import BadRequest, CatalogUnavailable, QueryTooLarge, TryAgain
from k2ray.query.database import Database
from k2ray.query.engine import QueryEngine
from k2ray.query.plan import prune, slices
from k2ray.query.request import parse_bars, parse_rows
from tests.support.market_tables import DAY_US, START_US, MarketTables, quote, trade


@pytest.fixture
def tables(tmp_path: Path) -> MarketTables:
    found = MarketTables(tmp_path / "data")
    found.create("trades", "quotes")
    return found


@pytest.fixture
def engine(tables: MarketTables) -> Iterator[QueryEngine]:
    found = QueryEngine(tables.catalog, tables.settings, tables.layout)
    yield found
    found.close()


def ask(engine: QueryEngine, table: str = "trades", **parameters: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = engine.rows(parse_rows(table, parameters)).rows.to_pylist()
    return rows


def ids(engine: QueryEngine, **parameters: str) -> list[str]:
    return [row["trade_id"] for row in ask(engine, **parameters)]


def pages(engine: QueryEngine, **parameters: str) -> list[str]:
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        answer = engine.rows(parse_rows("trades", {**parameters, **cursor}))
        found += answer.rows["trade_id"].to_pylist()
        if answer.next_cursor is None:
            return found
        cursor = {"cursor": answer.next_cursor}


def test_a_table_without_rows_answers_with_none(engine: QueryEngine) -> None:
    assert ask(engine) == []
    assert ask(engine, "quotes") == []


def test_a_missing_table_is_not_an_empty_answer(tmp_path: Path) -> None:
    """TRAPS 11: either source failing gave []."""
    tables = MarketTables(tmp_path / "data")
    engine = QueryEngine(tables.catalog, tables.settings, tables.layout)
    with pytest.raises(TryAgain, match="does not exist yet"):
        ask(engine)
    engine.close()


def test_a_failing_source_is_an_error_and_not_an_empty_answer(tables: MarketTables, engine: QueryEngine) -> None:
    """TRAPS 11: either source failing gave []."""
    tables.append("trades", [trade(1)])
    tables.append("trades", [trade(2)])
    [first, second] = sorted(tables.layout.warehouse.rglob("*.parquet"))
    first.unlink()
    with pytest.raises(CatalogUnavailable):
        ask(engine)
    first.write_bytes(b"not a parquet file")
    with pytest.raises(CatalogUnavailable):
        engine.bars(parse_bars({}))
    second.unlink()
    with pytest.raises(CatalogUnavailable):
        engine.symbols("trades", None)


def test_a_lost_manifest_is_an_error(tables: MarketTables, engine: QueryEngine) -> None:
    """TRAPS 11."""
    tables.append("trades", [trade(1)])
    for manifest in tables.layout.warehouse.rglob("*.avro"):
        manifest.unlink()
    with pytest.raises(CatalogUnavailable):
        ask(engine)


def test_filters_apply_before_the_limit(tables: MarketTables, engine: QueryEngine) -> None:
    """TRAPS 12: filters were applied after LIMIT."""
    rows = [trade(n, symbol="ETHUSDT" if n % 50 == 49 else "BTCUSDT") for n in range(200)]
    tables.append("trades", rows)
    assert ids(engine, symbols="ETHUSDT", limit="3") == ["49", "99", "149"]
    assert ids(engine, symbols="ETHUSDT", limit="2", start=str(START_US + 60_000_000)) == ["99", "149"]
    assert ids(engine, symbols="ETHUSDT", limit="1", order="desc") == ["199"]


def test_prices_and_quantities_stay_exact(tables: MarketTables, engine: QueryEngine) -> None:
    """TRAPS 2, 12, 13: decimals became floats; 12345678901.5 and 0.00012345 did not fit."""
    tables.append("trades", [trade(1, price="0.00012345", quantity="12345678901.5")])
    tables.append("quotes", [quote(1, bid_price="0", bid_quantity="99999999999999999999.999999999999999999")])
    [row] = ask(engine)
    assert (row["price"], row["quantity"]) == (Decimal("0.00012345"), Decimal("12345678901.5"))
    [row] = ask(engine, "quotes")
    assert (row["bid_price"], row["bid_quantity"]) == (0, Decimal("99999999999999999999.999999999999999999"))


def test_start_belongs_and_end_does_not(tables: MarketTables, engine: QueryEngine) -> None:
    tables.append("trades", [trade(n, at_us=START_US + n) for n in range(5)])
    assert ids(engine, start=str(START_US + 1), end=str(START_US + 3)) == ["1", "2"]
    assert ids(engine, start=str(START_US + 1), end=str(START_US + 1)) == []


def test_rows_have_one_order_across_files_and_exchanges(tables: MarketTables, engine: QueryEngine) -> None:
    rows = [
        trade(n, at_us=START_US + second, exchange=exchange, symbol=symbol)
        for n, (second, exchange, symbol) in enumerate(
            (second, exchange, symbol)
            for second in (0, DAY_US - 1, DAY_US)
            for exchange in ("asx", "binance")
            for symbol in ("AAA", "BBB")
        )
    ]
    for row in reversed(rows):
        tables.append("trades", [row])
    expected = [str(n) for n in range(len(rows))]
    assert ids(engine) == expected
    assert ids(engine, order="desc") == expected[::-1]
    assert ids(engine, exchange="asx", symbols="BBB") == ["1", "5", "9"]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_are_the_whole_even_among_equal_times(tables: MarketTables, engine: QueryEngine, order: str) -> None:
    rows = [trade(n, at_us=START_US + n // 7, symbol="AB"[n % 2]) for n in range(40)]
    # Rows without a sequence, told apart by their id alone.
    rows += [trade(n, at_us=START_US + 3, symbol="A", source_sequence=None) for n in range(100, 105)]
    for start in range(0, len(rows), 9):
        tables.append("trades", rows[start : start + 9])
    whole = ids(engine, order=order)
    assert len(whole) == len(set(whole)) == 45
    for limit in ("1", "4", "44", "45", "46"):
        assert pages(engine, order=order, limit=limit) == whole


def test_pages_are_repeatable_while_the_table_grows(tables: MarketTables, engine: QueryEngine) -> None:
    tables.append("trades", [trade(n) for n in range(10)])
    first = engine.rows(parse_rows("trades", {"limit": "5"}))
    assert first.next_cursor is not None
    tables.append("trades", [trade(n, at_us=START_US + 7_500_000) for n in range(100, 110)])
    assert len(ids(engine)) == 20, "a new question sees the new snapshot"
    for _ in range(2):
        second = engine.rows(parse_rows("trades", {"limit": "100", "cursor": first.next_cursor}))
        assert second.rows["trade_id"].to_pylist() == ["5", "6", "7", "8", "9"]
        assert second.snapshot_id == first.snapshot_id


def test_an_expired_snapshot_is_410(tables: MarketTables, engine: QueryEngine) -> None:
    """TRAPS 12: a snapshot id was passed where a metadata version was meant; here it names a snapshot or nothing."""
    tables.append("trades", [trade(n) for n in range(10)])
    token = engine.rows(parse_rows("trades", {"limit": "5"})).next_cursor
    assert token is not None
    tables.append("trades", [trade(11)])
    table = tables.catalog.load_table(("market", "trades"))
    table.maintenance.expire_snapshots().by_id(table.metadata.snapshots[0].snapshot_id).commit()
    with pytest.raises(BadRequest) as caught:
        engine.rows(parse_rows("trades", {"limit": "5", "cursor": token}))
    assert (caught.value.status, caught.value.field) == (410, "cursor")


def test_a_cursor_of_another_question_is_refused(tables: MarketTables, engine: QueryEngine) -> None:
    tables.append("trades", [trade(n) for n in range(10)])
    tables.append("quotes", [quote(n) for n in range(10)])
    token = engine.rows(parse_rows("trades", {"limit": "5"})).next_cursor
    assert token is not None
    for table, changed in (("trades", {"order": "desc"}), ("trades", {"symbols": "BTCUSDT"}), ("quotes", {})):
        with pytest.raises(BadRequest, match="cursor"):
            engine.rows(parse_rows(table, {"cursor": token, **changed}))


def test_spaces_are_apart_unless_asked_for(tables: MarketTables, engine: QueryEngine) -> None:
    for number, space in enumerate(("", "#2", "agg", "agg#2", "file:ab12")):
        tables.append("trades", [trade(number, sequence_space=space)])
    assert ids(engine) == ["0", "1"]
    assert ids(engine, space="agg") == ["2", "3"]
    assert ids(engine, space="file:ab12") == ["4"]
    assert ids(engine, space="all") == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("files", "known"),
    [
        ([[""]], ""),
        ([["", ""], [""]], ""),
        ([["", "#2"]], None),
        ([[""], ["agg"]], None),
        ([["agg", "agg"]], "agg"),
        ([["agg#2"]], "agg#2"),
        ([["file:" + "a" * 12 + "b", "file:" + "a" * 12 + "c"]], None),
    ],
)
def test_files_that_say_their_space_are_not_asked_row_by_row(
    tables: MarketTables, engine: QueryEngine, files: list[list[str]], known: str | None
) -> None:
    spaces = [space for file in files for space in file]
    number = 0
    for file in files:
        tables.append("trades", [trade(number + place, sequence_space=space) for place, space in enumerate(file)])
        number += len(file)
    request = parse_rows("trades", {})
    found = prune(engine.snapshots.files(engine.snapshots.pin("trades"), request.selection), request.selection)
    assert [part.space for part in slices(found, "asc")] == [known]
    for asked in {*(space.partition("#")[0] for space in spaces), "", "none"}:
        expected = [str(place) for place, space in enumerate(spaces) if space.partition("#")[0] == asked]
        assert ids(engine, space=asked) == expected


def test_only_files_that_matter_are_read(tables: MarketTables, engine: QueryEngine) -> None:
    for day in range(4):
        tables.append("trades", [trade(day, at_us=START_US + day * DAY_US, symbol=f"S{day}")])
    parameters = {"start": str(START_US + DAY_US), "end": str(START_US + 2 * DAY_US)}
    assert engine.rows(parse_rows("trades", parameters)).files == 1
    assert engine.rows(parse_rows("trades", {"symbols": "S3"})).files == 1
    assert engine.rows(parse_rows("trades", {"exchange": "asx"})).files == 0
    assert engine.rows(parse_rows("trades", {})).files == 4


def test_names_that_look_like_patterns_or_sql_are_just_names(tmp_path: Path) -> None:
    tables = MarketTables(tmp_path / "da[t]a* 'x'; --")
    tables.append("trades", [trade(1, symbol="O'BRIEN;--")])
    engine = QueryEngine(tables.catalog, tables.settings, tables.layout)
    assert ids(engine, symbols="O'BRIEN;--") == ["1"]
    assert ids(engine, symbols="X'OR'1'='1") == []
    engine.close()


def test_symbols_are_counted_as_files_come_and_go(tables: MarketTables, engine: QueryEngine) -> None:
    tables.append("trades", [trade(n, symbol="AB"[n % 2]) for n in range(5)])
    assert engine.symbols("trades", None).rows["rows"].to_pylist() == [3, 2]
    tables.append("trades", [trade(n, symbol="A", exchange="asx") for n in range(4)])
    answer = engine.symbols("trades", None).rows
    assert list(zip(answer["exchange"].to_pylist(), answer["rows"].to_pylist(), strict=True)) == [
        ("asx", 4),
        ("binance", 3),
        ("binance", 2),
    ]
    assert engine.symbols("trades", "asx").rows.num_rows == 1
    table = tables.catalog.load_table(("market", "trades"))
    table.manage_snapshots().rollback_to_snapshot(table.metadata.snapshots[0].snapshot_id).commit()
    assert engine.symbols("trades", None).rows["rows"].to_pylist() == [3, 2]


def test_snapshots_are_listed_newest_first(tables: MarketTables, engine: QueryEngine) -> None:
    made = [tables.append("trades", [trade(n)]) for n in range(3)]
    answer = engine.list_snapshots("trades", 2)
    assert answer.rows["snapshot_id"].to_pylist() == [str(one) for one in made[:0:-1]]
    assert answer.rows["total_rows"].to_pylist() == [3, 2]
    assert answer.snapshot_id == made[-1]


def test_many_threads_get_the_same_answer(tables: MarketTables, engine: QueryEngine) -> None:
    tables.append("trades", [trade(n) for n in range(500)])
    expected = ids(engine)
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(ids(engine))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


def database(tmp_path: Path, **limits: Any) -> Database:
    return Database([str(tmp_path)], **{"memory_bytes": 100_000_000, "threads": 1, "timeout_s": 30.0, **limits})


def test_a_query_ends_at_its_time_limit(tmp_path: Path) -> None:
    slow = database(tmp_path, timeout_s=0.2)
    began_s = time.monotonic()
    with pytest.raises(QueryTooLarge, match=r"ran longer than 0\.2 s"):
        slow.fetch("SELECT sum(a.range * b.range) FROM range(10000000) a, range(100000) b", {})
    assert time.monotonic() - began_s < 10
    slow.close()


def test_a_query_read_in_batches_ends_at_its_time_limit(tmp_path: Path) -> None:
    slow = database(tmp_path, timeout_s=0.2)
    batches: list[int] = []
    with pytest.raises(QueryTooLarge, match=r"ran longer than 0\.2 s"):
        slow.fold("SELECT a.range FROM range(10000000) a, range(100000)", {}, lambda batch: batches.append(len(batch)))
    assert batches
    slow.close()


def test_a_query_that_needs_too_much_memory_fails_alone(tmp_path: Path) -> None:
    small = database(tmp_path)
    with pytest.raises(QueryTooLarge, match="memory"):
        small.fetch("SELECT list(range) FROM range(50000000)", {})
    assert small.fetch("SELECT 1 AS one", {})["one"].to_pylist() == [1]
    small.close()


def test_the_database_reads_nothing_outside_the_warehouse(tmp_path: Path) -> None:
    (tmp_path / "outside.parquet").write_bytes(b"x")
    locked = Database([str(tmp_path / "warehouse")], 100_000_000, 1, 5.0)
    for statement in (
        f"SELECT * FROM read_parquet('{tmp_path}/outside.parquet')",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        f"COPY (SELECT 1) TO '{tmp_path}/written.csv'",
    ):
        with pytest.raises(Exception, match=r"(?i)permission|disabled|locked"):
            locked.fetch(statement, {})
    assert not (tmp_path / "written.csv").exists()
    locked.close()
