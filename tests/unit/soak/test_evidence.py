from pathlib import Path

import pytest

from k2ray.errors import TryAgain
from k2ray.lake.catalog import load_table
from k2ray.lake.durable import local_path
from k2ray.soak.evidence import Evidence, Hole, examine
from tests.support.market_tables import START_US, MarketTables, quote, trade

START = START_US / 1e6


@pytest.fixture
def tables(tmp_path: Path) -> MarketTables:
    return MarketTables(tmp_path / "data")


def look(tables: MarketTables, name: str = "trades", since: float = 0, until: float = 100_000) -> Evidence:
    table = load_table(tables.catalog, tables.settings, name)
    assert table is not None
    return examine(table, name, START + since, START + until, steps_by_one=name == "trades")


def test_rows_without_a_hole_or_a_copy_prove_themselves(tables: MarketTables) -> None:
    tables.append("trades", [trade(n) for n in range(50)])
    tables.append("trades", [trade(n) for n in range(50, 100)])
    found = look(tables)
    assert (found.rows, found.duplicated, found.missing, found.holes) == (100, 0, 0, [])
    assert found.seconds == frozenset(range(int(START), int(START) + 100))


def test_holes_and_copies_are_found_by_id_in_each_numbering_of_each_symbol(tables: MarketTables) -> None:
    rows = [trade(n, symbol=symbol) for symbol in ("AAA", "BBB") for n in range(40)]
    rows += [trade(n, symbol="AAA", sequence_space="#2") for n in range(10, 20)]
    missing = {("AAA", "", 7), ("AAA", "", 8), ("BBB", "", 20), ("AAA", "#2", 15)}
    tables.append(
        "trades", [r for r in rows if (r["symbol"], r["sequence_space"], r["source_sequence"]) not in missing]
    )
    tables.append("trades", [trade(30, symbol="BBB"), trade(30, symbol="BBB")])
    found = look(tables)
    assert (found.rows, found.duplicated, found.missing) == (len(rows) - 4 + 2, 2, 4)
    assert found.holes == [
        Hole("binance", "AAA", "", 7, 8),
        Hole("binance", "AAA", "#2", 15, 15),
        Hole("binance", "BBB", "", 20, 20),
    ]


def test_equal_counts_do_not_hide_a_lost_and_a_doubled_row(tables: MarketTables) -> None:
    tables.append("trades", [trade(n) for n in (0, 1, 1, 3)])
    found = look(tables)
    assert (found.rows, found.duplicated, found.missing) == (4, 1, 1)


def test_only_the_period_counts_also_over_midnight(tables: MarketTables) -> None:
    tables.append("trades", [trade(n) for n in range(86_390, 86_410)])
    found = look(tables, since=86_395, until=86_405)
    assert (found.rows, found.missing) == (10, 0)
    assert look(tables, since=90_000, until=95_000).rows == 0


def test_quotes_prove_copies_but_no_holes(tables: MarketTables) -> None:
    tables.append("quotes", [quote(n) for n in (1, 5, 9, 9)])
    found = look(tables, "quotes")
    assert (found.rows, found.duplicated, found.missing) == (4, 1, None)


def test_the_rate_is_that_of_event_times(tables: MarketTables) -> None:
    tables.append("trades", [trade(n, at_us=START_US + (n // 3) * 1_000_000) for n in range(30)])
    rates = look(tables, until=1000).rates
    assert rates[0] == (START, 3.0)
    assert len(rates) == 5


def test_one_id_on_two_exchanges_is_no_copy(tables: MarketTables) -> None:
    tables.append("trades", [trade(n, exchange=name) for n in range(10) for name in ("binance", "binance_usdm")])
    found = look(tables)
    assert (found.rows, found.duplicated, found.missing) == (20, 0, 0)


def test_the_ragged_ends_of_a_period_are_no_peak_and_no_drop(tables: MarketTables) -> None:
    tables.append("trades", [trade(n, at_us=START_US + n * 100_000) for n in range(100)])
    rates = look(tables, since=0.65, until=9.3).rates
    assert [rate for _, rate in rates] == [pytest.approx(10)] * 8
    assert rates[0][0] == START + 1


def test_files_that_upkeep_removed_while_it_reads_are_read_in_what_replaced_them(tables: MarketTables) -> None:
    """A week takes longer to read than replaced files stay."""
    tables.append("trades", [trade(n) for n in range(10)])
    table, other = (load_table(tables.catalog, tables.settings, "trades") for _ in range(2))
    assert table is not None
    assert other is not None
    (gone,) = [str(local_path(task.file.file_path)) for task in table.scan().plan_files()]
    other.delete()
    tables.append("trades", [trade(n) for n in range(10)])
    Path(gone).unlink()
    found = examine(table, "trades", START, START + 100, steps_by_one=True)
    assert (found.rows, found.duplicated, found.missing) == (10, 0, 0)


def test_files_that_nobody_can_read_are_said_to_be(tables: MarketTables) -> None:
    tables.append("trades", [trade(0)])
    table = load_table(tables.catalog, tables.settings, "trades")
    assert table is not None
    (gone,) = [str(local_path(task.file.file_path)) for task in table.scan().plan_files()]
    Path(gone).unlink()
    with pytest.raises(TryAgain, match="cannot be read"):
        look(tables)
