"""Any interleaving of appends, two upkeeps that die anywhere, and queries leaves the table equal to the truth."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyiceberg.table import Table

from k2ray.errors import TryAgain, WorldMoved
from k2ray.lake.commit import Append, commit_append
from k2ray.lake.durable import local_path
from k2ray.lake.sweep import MARGIN_US
from k2ray.lake.upkeep import TableUpkeep
from tests.support.compaction import HOUR_S, clock_after, upkeep_of
from tests.support.lake import Killed, append_of, kill_at, open_table, stored_ids, trades

ROWS = 4
POINTS = (
    "compaction_planned",
    "mid_parquet",
    "compaction_written",
    "compaction_verified",
    "compaction_commit",
    "compaction_done",
    "expiry",
    "expired",
    "mid_delete",
    "mid_sweep",
)
UPKEEPS = ("first", "second")

actions = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 4), st.just("")),
    st.tuples(st.just("prepare"), st.just(0), st.just("")),
    st.tuples(st.just("land"), st.just(0), st.just("")),
    st.tuples(st.just("hour"), st.just(0), st.just("")),
    st.tuples(st.just("look"), st.sampled_from(UPKEEPS), st.just("")),
    st.tuples(st.just("crash"), st.sampled_from(UPKEEPS), st.sampled_from(POINTS)),
    st.tuples(st.just("append during"), st.sampled_from(UPKEEPS), st.sampled_from(POINTS)),
    st.tuples(st.just("look during"), st.sampled_from(UPKEEPS), st.sampled_from(POINTS)),
    st.tuples(st.just("query"), st.just(0), st.just("")),
    st.tuples(st.just("read"), st.just(0), st.just("")),
)


class Story:
    """A table, its writer, two upkeeps, a batch that lands late or never, and a query that takes its time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = open_table(folder)
        self.clock = clock_after(0)
        self.offset = 0
        self.late: Append | None = None
        self.query: tuple[Table, int, int] | None = None
        self.upkeeps: dict[str, TableUpkeep] = {}
        self.faults: dict[str, Callable[[str], None]] = {}
        self.interrupted = ""

    def run(self, action: str, value: Any, point: str) -> None:
        if action == "append":
            for _ in range(value):
                self.append()
        elif action == "prepare":
            self.late = self.prepared()
        elif action == "land" and self.late is not None:
            self.land(self.late)
        elif action == "hour":
            self.clock.advance(HOUR_S)
            self.age()
        elif action == "query":
            self.table.refresh()
            head = self.table.metadata.current_snapshot_id
            self.query = None if head is None else (open_table(self.folder), head, self.offset)
        elif action == "read":
            self.read()
        elif action == "look":
            self.look(value)
        elif action == "crash":
            self.at(value, kill_at(point))
            with_killed(lambda: self.look(value))
            self.upkeeps.pop(value).close()
            self.faults.pop(value, None)
        elif action in {"append during", "look during"}:
            other = UPKEEPS[1 - UPKEEPS.index(value)]
            meanwhile = self.append if action == "append during" else (lambda: self.look(other))

            def interrupt() -> None:
                self.interrupted = point
                meanwhile()

            self.at(value, once(point, interrupt))
            self.look(value)
            self.faults.pop(value, None)

    def prepared(self) -> Append:
        ids = range(self.offset * ROWS, (self.offset + 1) * ROWS)
        start = self.clock.now_us() - 120_000_000 - ids.start * 1_000
        self.table.refresh()
        return append_of(self.table, self.offset, self.offset + 1, trades(ids, ["A", "B"] * 2, start_us=start))

    def append(self) -> None:
        commit_append(self.table, self.prepared())
        self.offset += 1

    def land(self, late: Append) -> None:
        self.late = None
        try:
            commit_append(self.table, late)
        except WorldMoved:
            return
        self.offset += 1

    def age(self) -> None:
        """Let the files be as old as the clock says."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.suffix in {".parquet", ".avro", ".arrow"}:
                stamp = path.stat().st_mtime - 2 * MARGIN_US / 1e6
                os.utime(path, (stamp, stamp))

    def read(self) -> None:
        if self.query is None:
            return
        table, snapshot, offset = self.query
        assert sorted(table.scan(snapshot_id=snapshot).to_arrow()["source_sequence"].to_pylist()) == list(
            range(offset * ROWS)
        )

    def at(self, name: str, fault: Callable[[str], None]) -> None:
        self.faults[name] = fault

    def look(self, name: str) -> None:
        if name not in self.upkeeps:
            self.upkeeps[name] = upkeep_of(
                self.folder,
                self.clock,
                faults=lambda point: self.faults.get(name, lambda _: None)(point),
                leases=lambda: [self.query[1]] if self.query is not None else [],
                upkeep={"compact_target_bytes": 1_048_576},
            )
        try:
            self.upkeeps[name].step()
        except TryAgain:
            return  # the other one deleted what this one was reading: the next look sees it

    def close(self) -> None:
        for upkeep in self.upkeeps.values():
            upkeep.close()


def with_killed(work: Callable[[], None]) -> None:
    try:
        work()
    except Killed:
        return


def once(point: str, work: Callable[[], None]) -> Callable[[str], None]:
    left = [work]

    def fault(reached: str) -> None:
        if reached == point and left:
            left.pop()()

    return fault


def check(story: Story) -> None:
    """Compare ids, read every retained snapshot to its end, and see that what is left over is bounded."""
    story.read()
    story.query = None
    story.run("append", 1, "")
    ids = stored_ids(story.table)
    assert ids == list(range(story.offset * ROWS)), "lost or doubled"
    for _ in range(2):
        story.run("hour", 0, "")
        story.look("first")
        story.run("append", 1, "")
    assert stored_ids(story.table) == list(range(story.offset * ROWS))
    for snapshot in story.table.metadata.snapshots:
        story.table.scan(snapshot_id=snapshot.snapshot_id).to_arrow()
    live = {
        str(local_path(task.file.file_path))
        for snapshot in story.table.metadata.snapshots
        for task in story.table.scan(snapshot_id=snapshot.snapshot_id).plan_files()
    }
    stray = {str(path) for path in story.folder.rglob("*.parquet")} - live
    assert len(stray) <= 8, "what died is swept"


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(story=st.lists(actions, min_size=5, max_size=12))
def test_any_interleaving_of_writer_upkeeps_and_queries_keeps_every_row_once(
    story: list[tuple[str, Any, str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        told = Story(Path(folder))
        try:
            told.run("append", 3, "")
            for action in story:
                told.run(*action)
            check(told)
        finally:
            told.close()


@pytest.mark.parametrize("point", POINTS)
def test_upkeep_that_dies_at_each_point_loses_and_doubles_nothing(point: str, tmp_path: Path) -> None:
    """An hour is compacted, its snapshots expire and its files are swept; somewhere on the way it dies, twice."""
    told = Story(tmp_path)
    try:
        told.run("append", 4, "")
        reached: list[str] = []
        for _ in range(4):
            told.run("hour", 0, "")
            told.run("append", 3, "")
            told.at("first", chained(reached.append, kill_at(point)))
            with_killed(lambda: told.look("first"))
            told.upkeeps.pop("first").close()
            told.faults.clear()
        assert point in reached
        check(told)
    finally:
        told.close()


@pytest.mark.parametrize("point", POINTS)
def test_what_happens_at_each_point_of_an_upkeep_is_kept(point: str, tmp_path: Path) -> None:
    """At each point another upkeep looks, and the writer commits: neither waits, neither is undone."""
    told = Story(tmp_path)
    try:
        told.run("append", 4, "")
        told.look("first")
        for action in ("append during", "look during"):
            told.run("hour", 0, "")
            told.run("append", 3, "")
            told.run(action, "first", point)
            assert told.interrupted == point, "nothing was under way: the test would prove nothing"
            told.interrupted = ""
        check(told)
    finally:
        told.close()


def chained(*faults: Callable[[str], Any]) -> Callable[[str], None]:
    def fault(reached: str) -> None:
        for one in faults:
            one(reached)

    return fault
