"""A replace against everybody else who commits: it lands over appends, gives way to the rest, and moves no offset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.expressions import EqualTo
from pyiceberg.table import Table
from sqlalchemy.exc import OperationalError

from k2ray import metrics
from k2ray.clock import ManualClock
from k2ray.errors import CatalogUnavailable
from k2ray.lake.commit import commit_append
from k2ray.lake.durable import local_path
from k2ray.lake.progress import Offset, committed_progress
from k2ray.lake.sweep import MARGIN_US
from tests.support.compaction import KEY, before_commits, clock_after, commit_small, compactor, data_files
from tests.support.lake import append_of, open_table, stored_ids, trades


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = open_table(tmp_path)
    commit_small(table, 4)
    return table


@pytest.fixture
def rival(tmp_path: Path, table: Table) -> Table:
    """The same table as another process sees it."""
    return open_table(tmp_path)


def offset(table: Table) -> int:
    table.refresh()
    progress = committed_progress(table.metadata)
    assert progress is not None
    return progress.offset(KEY).next


def ledger(table: Table) -> str | None:
    progress = committed_progress(table.metadata)
    assert progress is not None
    return progress.ledger


def gave_way() -> float:
    value: float = metrics.COMPACTIONS.labels("trades", "gave_way")._value.get()
    return value


def test_it_lands_over_an_append_that_won_and_carries_on_that_ones_key(
    tmp_path: Path, table: Table, rival: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned at offset 4 and retried over an append to 6: the summary of the plan would put 4 back."""
    calls = before_commits(monkeypatch, table.catalog, lambda: commit_small(rival, 2))
    assert compactor(tmp_path, clock_after(1)).step(table, 0).done == 1
    assert len(calls) == 2
    assert offset(table) == 6
    assert ledger(table) == ledger(rival)
    assert stored_ids(table) == list(range(240))
    assert len(data_files(table)) == 3


def test_an_append_that_loses_to_it_lands_at_its_next_attempt(
    tmp_path: Path, table: Table, rival: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer's fence must not take a compaction for a rival: it would drop its memory and start over."""
    append = append_of(table, 4, 5, trades(range(160, 200)))
    calls = before_commits(monkeypatch, table.catalog, lambda: compactor(tmp_path, clock_after(1)).step(rival, 0))
    landed = commit_append(table, append)
    assert len(calls) == 2
    assert not landed.found
    assert landed.progress.offset(KEY) == Offset(5)
    assert stored_ids(table) == list(range(200))
    assert len(data_files(table)) == 2


def test_an_append_whose_answer_was_lost_is_found_below_a_compaction(
    tmp_path: Path, table: Table, rival: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both keys name the append's ledger; either proves that it landed, and it must not be stored twice."""
    append = append_of(table, 4, 5, trades(range(160, 200)))
    commit = table.catalog.commit_table

    def answer_lost(*args: Any, **kwargs: Any) -> Any:
        commit(*args, **kwargs)
        assert compactor(tmp_path, clock_after(1)).step(rival, 0).done == 1
        raise OperationalError("commit", {}, Exception("connection reset"))

    rival.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(table.catalog, "commit_table", answer_lost)
        rival.refresh()
        landed = commit_append(table, append)
    assert landed.found
    assert stored_ids(table) == list(range(200))


def test_two_compactions_of_the_same_files_store_them_once(
    tmp_path: Path, table: Table, rival: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make before break: the new upkeep starts while the old one is in the middle of an hour."""
    other = compactor(tmp_path, clock_after(1))
    before_commits(monkeypatch, table.catalog, lambda: other.step(rival, 0))
    before = gave_way()
    report = compactor(tmp_path, clock_after(1)).step(table, 0)
    assert (report.done, report.gave_way) == (0, 1)
    assert gave_way() == before + 1
    assert stored_ids(table) == list(range(160))
    assert len(data_files(table)) == 1


def test_it_gives_way_to_a_delete(tmp_path: Path, table: Table, rival: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    before_commits(monkeypatch, table.catalog, lambda: rival.delete(EqualTo("exchange", "binance")))
    assert compactor(tmp_path, clock_after(1)).step(table, 0).gave_way == 1
    assert stored_ids(table) == []
    assert offset(table) == 4


def test_it_gives_way_to_a_rollback(
    tmp_path: Path, table: Table, rival: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator goes back to the second commit: rows of the third and fourth must not come back through us."""
    old = sorted(table.metadata.snapshots, key=lambda one: one.sequence_number or 0)[2].snapshot_id
    before_commits(monkeypatch, table.catalog, lambda: rival.manage_snapshots().set_current_snapshot(old).commit())
    assert compactor(tmp_path, clock_after(1)).step(table, 0).gave_way == 1
    assert stored_ids(table) == list(range(80))
    assert offset(table) == 2


def test_it_gives_way_after_a_bounded_number_of_lost_races(
    tmp_path: Path, table: Table, rival: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.transaction().set_properties({"commit.retry.num-retries": "2"}).commit_transaction()
    table.refresh()
    calls = before_commits(monkeypatch, table.catalog, *[lambda: commit_small(rival, 1)] * 9)
    assert compactor(tmp_path, clock_after(1)).step(table, 0).gave_way == 1
    assert len(calls) == 3
    assert offset(table) == 7
    assert stored_ids(table) == list(range(280))
    monkeypatch.undo()
    assert compactor(tmp_path, clock_after(1)).step(table, 0).done == 1, "the next look does it"
    assert stored_ids(table) == list(range(280))


def test_one_that_slept_gives_way_before_the_sweep_can_take_its_file(tmp_path: Path, table: Table) -> None:
    """A laptop is closed between writing and committing; the file may be taken for a dead one's when it wakes."""
    clock = clock_after(1)
    asleep = compactor(
        tmp_path, clock, faults=lambda point: clock.advance(MARGIN_US / 1e6) if point == "compaction_verified" else None
    )
    assert asleep.step(table, 0).gave_way == 1
    assert len(data_files(table)) == 4


def test_one_whose_file_is_gone_gives_way(tmp_path: Path, table: Table) -> None:
    def swept(point: str) -> None:
        if point == "compaction_verified":
            (file,) = tmp_path.rglob("k2ray-compacted-*")
            file.unlink()

    assert compactor(tmp_path, clock_after(1), faults=swept).step(table, 0).gave_way == 1
    assert stored_ids(table) == list(range(160))


def test_one_that_landed_and_was_answered_with_a_conflict_is_recognised(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = table.catalog.commit_table

    def landed_but(*args: Any, **kwargs: Any) -> Any:
        commit(*args, **kwargs)
        monkeypatch.undo()
        raise CommitFailedException("the answer was lost, the transport asked twice")

    monkeypatch.setattr(table.catalog, "commit_table", landed_but)
    assert compactor(tmp_path, clock_after(1)).step(table, 0).done == 1
    assert stored_ids(table) == list(range(160))
    assert len(data_files(table)) == 1


def test_a_catalog_that_goes_away_is_tried_again(tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise OperationalError("commit", {}, Exception("database is locked"))

    with monkeypatch.context() as patch:
        patch.setattr(table.catalog, "commit_table", away)
        with pytest.raises(CatalogUnavailable, match="another process holds the SQLite catalog locked"):
            compactor(tmp_path, clock_after(1)).step(table, 0)
    assert len(data_files(table)) == 4
    assert compactor(tmp_path, clock_after(1)).step(table, 0).done == 1
    assert stored_ids(table) == list(range(160))


def test_entries_that_stay_keep_their_sequence_numbers(tmp_path: Path, table: Table) -> None:
    """A delete file applies to older files only: a number that moved would protect rows from it."""
    commit_small(table, 2, at_us=1_717_243_200_000_000 + 3_600_000_000)
    head = table.current_snapshot()
    assert head is not None

    def numbers() -> dict[str, tuple[int | None, int | None]]:
        table.refresh()
        now = table.current_snapshot()
        assert now is not None
        return {
            entry.data_file.file_path: (entry.sequence_number, entry.snapshot_id)
            for manifest in now.manifests(table.io)
            for entry in manifest.fetch_manifest_entry(table.io)
        }

    before = numbers()
    compactor(tmp_path, clock_after(1)).step(table, 0)
    after = numbers()
    kept = set(before) & set(after)
    assert len(kept) == 2
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}


def test_a_reader_of_an_older_snapshot_is_not_disturbed(tmp_path: Path, table: Table) -> None:
    snapshot = table.metadata.current_snapshot_id
    scan = table.scan(snapshot_id=snapshot)
    tasks = list(scan.plan_files())
    compactor(tmp_path, ManualClock(now_us=clock_after(1).now_us())).step(table, 0)
    assert all(Path(str(local_path(task.file.file_path))).exists() for task in tasks)
    assert scan.to_arrow().num_rows == 160
