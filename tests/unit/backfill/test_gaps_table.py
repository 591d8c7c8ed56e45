"""The gaps table: each event once, whoever writes it and whenever it crashes; and it stays small."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ray.backfill.gaps_table import GapsTable, rows_of
from k2ray.backfill.history import GapEvent, History, advance
from k2ray.backfill.recorder import gap_recorder
from k2ray.backfill.spans import of_ids
from k2ray.clock import ManualClock
from k2ray.errors import WorldMoved
from k2ray.lake.catalog import load_table, open_catalog
from k2ray.layout import DataDir
from k2ray.ledger import Gap
from k2ray.model import GAPS
from k2ray.settings import load_settings
from tests.support.lake import NOON_US, lake_settings

KEY = ("trades", "binance", "BTCUSDT", "")


def gap(first: int, last: int, *, sealed: bool = False) -> Gap:
    return Gap("binance", "BTCUSDT", "", first, last, 0, 0, sealed)


def look(before: History, *gaps: Gap, at: int = 7) -> tuple[History, list[GapEvent]]:
    return advance(before, "trades", "binance", gaps, 1, at, lambda _key, _span: "gone")


def short(events: list[GapEvent]) -> list[tuple[int, int, str, int]]:
    return [(event.first, event.last, event.state, event.opened_us) for event in events]


def test_a_gap_opens_is_filled_in_part_and_lost_in_part() -> None:
    first, events = look({}, gap(10, 19), at=1)
    assert short(events) == [(10, 19, "open", 1)]
    again, events = look(first, gap(10, 19), at=2)
    assert (again, events) == (first, [])
    second, events = look(first, gap(13, 15), gap(16, 17, sealed=True), at=3)
    assert short(events) == [(10, 12, "filled", 1), (18, 19, "filled", 1), (16, 17, "lost", 1)]
    assert [event.reason for event in events] == ["", "", "gone"]
    third, events = look(second, gap(16, 17, sealed=True), gap(30, 31), at=4)
    assert short(events) == [(30, 31, "open", 4), (13, 15, "filled", 1)]
    _, events = look(third, gap(30, 31), at=5)
    assert short(events) == [(16, 17, "filled", 1)], "what was lost came after all"


def test_gaps_of_others_stay_as_they_are() -> None:
    before, _ = look({}, gap(1, 2))
    after, events = advance(before, "trades", "coinbase", [], 1, 9, lambda _key, _span: "")
    assert (after, events) == (before, [])


@given(st.lists(st.tuples(st.sets(st.integers(1, 30)), st.sets(st.integers(1, 30))), max_size=6))
def test_events_add_up_to_what_is_missing(looks: list[tuple[set[int], set[int]]]) -> None:
    """Whatever is seen in whatever order: open events less filled ones are what is missing now, each id once."""
    history: History = {}
    missing: set[int] = set()
    for opened, lost in looks:
        lost = lost & opened
        gaps = [gap(*span) for span in of_ids(np.array(sorted(opened - lost), dtype=np.int64))]
        gaps += [gap(*span, sealed=True) for span in of_ids(np.array(sorted(lost), dtype=np.int64))]
        history, events = look(history, *gaps)
        for event in events:
            ids = set(range(event.first, event.last + 1))
            if event.state == "open":
                assert not ids & missing
                missing |= ids
            elif event.state == "filled":
                assert ids <= missing
                missing -= ids
        assert missing == opened


@pytest.fixture
def tables(tmp_path: Path) -> Any:
    settings = lake_settings(tmp_path)
    return lambda: GapsTable(open_catalog(settings, DataDir(tmp_path)), settings)


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    settings = lake_settings(tmp_path)
    table = load_table(open_catalog(settings, DataDir(tmp_path)), settings, GAPS)
    assert table is not None
    found: list[dict[str, Any]] = table.scan().to_arrow().to_pylist()
    return found


def test_the_state_comes_back_after_a_crash(tables: Any, tmp_path: Path) -> None:
    first = tables()
    after, events = look(first.history(), gap(10, 19), at=1_700_000_000_000_000)
    first.append(events, after)
    second = tables()
    assert second.history() == after
    _, events = look(second.history(), gap(10, 19))
    assert events == []
    (row,) = rows(tmp_path)
    assert row["event_id"] == "trades/binance/BTCUSDT//10-19/open"
    assert (row["missing"], row["state"], row["closed_at"], row["snapshot_id"]) == (10, "open", None, 1)


def test_of_two_at_work_one_is_refused_and_doubles_nothing(tables: Any, tmp_path: Path) -> None:
    first, zombie = tables(), tables()
    after, events = look(first.history(), gap(10, 19), at=1_700_000_000_000_000)
    assert zombie.history() == {}
    first.append(events, after)
    with pytest.raises(WorldMoved):
        zombie.append(events, after)
    zombie.forget()
    assert zombie.history() == after
    assert len(rows(tmp_path)) == 1


def test_months_of_events_leave_few_files_and_change_no_row(tmp_path: Path) -> None:
    """Every commit leaves a file, a snapshot, a manifest list and a state file; upkeep takes them away again."""
    upkeep = {"snapshots_kept": 3, "expire_every": 2, "tag_retention_s": 1}
    settings = load_settings(arguments={"data_dir": str(tmp_path), "lake": {"upkeep": upkeep}}, environ={})
    catalog, clock = open_catalog(settings, DataDir(tmp_path)), ManualClock(now_us=NOON_US)
    table = GapsTable(catalog, settings)
    recorder = gap_recorder(catalog, settings, DataDir(tmp_path), "binance", clock)
    stored: list[dict[str, Any]] = []
    days = 3
    for number in range(12 * days):
        after, events = look(table.history(), gap(number * 10, number * 10 + 1), at=clock.now_us())
        table.append(events, after)
        stored += rows_of(events).to_pylist()
        clock.advance(7_200)
        if number % 3 == 0:
            assert recorder.tidy() is None
    clock.advance(86_400)
    for _ in range(3):
        assert recorder.tidy() is None
        clock.advance(4_000)
    found = load_table(catalog, settings, GAPS)
    assert found is not None
    live = [task.file.file_path for task in found.scan().plan_files()]
    assert len(live) <= days + 1, "one a day, and the first began at noon"
    assert len(found.metadata.snapshots) <= 3 + 2
    folder = Path(found.location().removeprefix("file://"))
    # What was compacted stays for as long as a snapshot names it.
    assert len(list(folder.glob("data/**/*.parquet"))) <= len(live) + 8
    assert len(list(folder.glob("metadata/*.metadata.json"))) <= settings.lake.upkeep.metadata_versions_kept + 1
    assert len(list(folder.glob("metadata/k2ray-ledger-*"))) <= 3 + 2
    by_id = operator.itemgetter("event_id")
    assert sorted(rows(tmp_path), key=by_id) == sorted(stored, key=by_id)
    table.forget()
    assert table.history() == after
    _, events = look(after, at=clock.now_us())
    table.append(events, {})
    assert len(rows(tmp_path)) == len(stored) + 1
