"""Pruning never drops a file that holds a matching row, and slices cover every instant once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from k2ray.query.files import HIGHEST, LOWEST, FileList
from k2ray.query.plan import prune, slices
from k2ray.query.request import Order, Selection

SYMBOLS = ("AAA", "BTCUSDT", "BTCUSDTX", "ETHUSDT", "ZZZ")
Row = tuple[str, str, int]

rows_strategy = st.lists(
    st.tuples(st.sampled_from(("asx", "binance")), st.sampled_from(SYMBOLS), st.integers(0, 100)),
    min_size=1,
    max_size=8,
)
files_strategy = st.lists(st.tuples(rows_strategy, st.booleans()), max_size=12)


def file_list(files: list[tuple[list[Row], bool]]) -> FileList:
    """Return one entry a file and exchange; a file without bounds has none at all."""
    entries = []
    for number, (rows, bounded) in enumerate(files):
        for exchange in {row[0] for row in rows}:
            mine = [row for row in rows if row[0] == exchange]
            symbols, times = sorted(row[1] for row in mine), sorted(row[2] for row in mine)
            entries.append(
                (f"{number}-{exchange}", exchange, len(mine), times[0], times[-1], symbols[0], symbols[-1], "")
                if bounded
                else (f"{number}-{exchange}", "", len(mine), LOWEST, HIGHEST, "", "\U0010ffff", None)
            )
    columns = list(zip(*entries, strict=True)) or [()] * 8
    kinds = (object, object, np.int64, np.int64, np.int64, object, object, object)
    return FileList(*(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))


selections = st.builds(
    Selection,
    table=st.just("trades"),
    exchange=st.sampled_from((None, "asx", "binance", "kraken")),
    symbols=st.lists(st.sampled_from(SYMBOLS), max_size=2, unique=True).map(lambda found: tuple(sorted(found))),
    start_us=st.one_of(st.none(), st.integers(-5, 105)),
    end_us=st.one_of(st.none(), st.integers(-5, 105)),
    space=st.none(),
)


def matches(row: Row, selection: Selection) -> bool:
    exchange, symbol, time = row
    return (
        selection.exchange in {None, exchange}
        and (not selection.symbols or symbol in selection.symbols)
        and (selection.start_us is None or time >= selection.start_us)
        and (selection.end_us is None or time < selection.end_us)
    )


@given(files_strategy, selections)
def test_pruning_never_drops_a_matching_row(files: list[tuple[list[Row], bool]], selection: Selection) -> None:
    kept = set(prune(file_list(files), selection).paths)
    for number, (rows, _) in enumerate(files):
        for row in rows:
            if matches(row, selection):
                assert f"{number}-{row[0]}" in kept


@given(files_strategy, st.sampled_from(("asc", "desc")), st.integers(1, 20), st.sampled_from((1, 7, 30)))
def test_slices_hold_every_row_once_and_in_order(
    files: list[tuple[list[Row], bool]], order: Order, goal: int, align: int
) -> None:
    everything = sorted(
        (time, f"{number}-{exchange}") for number, (rows, _) in enumerate(files) for exchange, _, time in rows
    )
    found: list[tuple[int, str]] = []
    reached: int | None = None
    for part in slices(file_list(files), order, goal_rows=goal, align_us=align):
        edge = part.start_us if order == "asc" else part.end_us
        assert edge == reached, "a slice begins where the last one ended"
        for bound in (part.start_us, part.end_us):
            assert bound is None or bound % align == 0
        found += [
            (time, path)
            for time, path in everything
            if path in part.paths
            and (part.start_us is None or time >= part.start_us)
            and (part.end_us is None or time < part.end_us)
        ]
        reached = part.end_us if order == "asc" else part.start_us
    assert reached is None or not files
    assert sorted(found) == everything


def test_the_newest_rows_need_the_newest_files_only() -> None:
    files = file_list([([("binance", "AAA", time)] * 5, True) for time in range(100)])
    first = next(slices(files, "desc", goal_rows=20))
    assert first.paths == tuple(f"{number}-binance" for number in (99, 98, 97, 96))
    assert (first.start_us, first.end_us) == (96, None)
