"""The fence, and a contract test for each private name of pyiceberg that it leans on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.expressions import EqualTo
from pyiceberg.table import Table
from pyiceberg.table.update.snapshot import _FastAppendFiles, _MergeAppendFiles
from sqlalchemy.exc import OperationalError

from k2ray.errors import CatalogUnavailable, OperatorNeeded, WorldMoved
from k2ray.lake.catalog import create_table, ensure_table, open_catalog
from k2ray.lake.commit import _FencedAppend, commit_append
from k2ray.lake.progress import START, Offset, committed_progress
from k2ray.layout import DataDir
from tests.support.lake import TRADES_TOPIC, Killed, append_of, kill_at, lake_settings, open_table, stored_ids

KEY = (TRADES_TOPIC, 0)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return open_table(tmp_path)


@pytest.fixture
def rival(tmp_path: Path, table: Table) -> Table:
    """The same table as another process sees it."""
    return open_table(tmp_path)


class Interposed:
    """Runs something before or after the catalog's own commit, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, table: Table) -> None:
        self._commit = table.catalog.commit_table
        self.before: Iterator[Callable[[], None]] = iter(())
        self.after: Iterator[Callable[[], None]] = iter(())
        self.calls = 0
        monkeypatch.setattr(table.catalog, "commit_table", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        for action in self.before:
            action()
            break
        response = self._commit(*args, **kwargs)
        for action in self.after:
            action()
            break
        return response


def committed(table: Table) -> int:
    table.refresh()
    progress = committed_progress(table.metadata)
    assert progress is not None
    return progress.offset(KEY).next


def test_a_commit_stores_rows_offsets_and_ledger_in_one_snapshot(table: Table) -> None:
    append = append_of(table, 0, 10)
    landed = commit_append(table, append)
    assert landed.snapshot_id == table.metadata.current_snapshot_id
    assert not landed.found
    assert landed.progress.offset(KEY) == Offset(10)
    assert landed.progress.offset((TRADES_TOPIC, 1)) == START
    assert (landed.progress.ledger, landed.progress.cluster) == (append.ledger, "cluster-1")
    assert stored_ids(table) == list(range(10))


def test_a_zombie_is_refused_at_its_first_attempt(table: Table, rival: Table) -> None:
    """Trap 20: it reloaded after its rival's commit, so pyiceberg sees no conflict at all; only the fence does."""
    late = append_of(table, 0, 10)
    commit_append(rival, append_of(rival, 0, 10))
    table.refresh()
    with pytest.raises(WorldMoved, match=r"committed is 10, the batch starts at 0"):
        commit_append(table, late)
    assert stored_ids(table) == list(range(10))


def test_a_zombie_is_refused_at_its_retry(table: Table, rival: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first attempt passes the fence on the old head and loses the compare-and-swap."""
    late = append_of(table, 0, 10)
    catalog = Interposed(monkeypatch, table)
    catalog.before = iter([lambda: void(commit_append(rival, append_of(rival, 0, 10)))])
    with pytest.raises(WorldMoved, match="committed is 10"):
        commit_append(table, late)
    assert catalog.calls == 1
    assert stored_ids(table) == list(range(10))


def test_two_zombies_of_one_partition_do_not_hide_behind_another_partition(table: Table, rival: Table) -> None:
    """Every committed offset counts, not only those that the batch moves."""
    commit_append(rival, append_of(rival, 0, 5, partition=1))
    with pytest.raises(WorldMoved, match=r"\[1\]: committed is 5, the batch starts at 0"):
        commit_append(table, append_of(table, 0, 10))
    assert stored_ids(table) == list(range(5))


def test_a_retry_over_a_foreign_commit_keeps_the_key(
    table: Table, rival: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delete by somebody else lands between our attempts: the key is merged over what it left, not over a memory."""
    commit_append(table, append_of(table, 0, 10))
    rival.refresh()
    catalog = Interposed(monkeypatch, table)
    catalog.before = iter([lambda: rival.delete(EqualTo("exchange", "binance"))])
    landed = commit_append(table, append_of(table, 10, 20))
    assert catalog.calls == 2
    assert landed.progress.offset(KEY) == Offset(20)
    assert stored_ids(table) == list(range(10, 20))


def test_a_commit_that_landed_and_was_answered_with_a_conflict_is_recognised(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost_answer() -> None:
        raise CommitFailedException("the answer was lost, the transport asked twice")

    catalog = Interposed(monkeypatch, table)
    catalog.after = iter([lost_answer])
    landed = commit_append(table, append_of(table, 0, 10))
    assert catalog.calls == 1
    assert landed.progress.offset(KEY) == Offset(10)
    assert stored_ids(table) == list(range(10))


def test_a_commit_that_landed_before_an_error_is_found(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OperationalError("select", {}, Exception("connection reset"))

    Interposed(monkeypatch, table).after = iter([broken])
    landed = commit_append(table, append_of(table, 0, 10))
    assert landed.found
    assert landed.snapshot_id == table.metadata.current_snapshot_id
    assert stored_ids(table) == list(range(10))


def test_an_unknown_outcome_is_looked_up_before_anything_else(
    table: Table, rival: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog took the commit and went away: the next call must find it, with a rival's commit on top."""

    def broken() -> None:
        raise OperationalError("select", {}, Exception("connection reset"))

    append = append_of(table, 0, 10)
    with monkeypatch.context() as patch:
        Interposed(patch, table).after = iter([broken])
        patch.setattr(type(table), "refresh", lambda _: broken())
        with pytest.raises(CatalogUnavailable, match="cannot look"):
            commit_append(table, append)
    rival.refresh()
    commit_append(rival, append_of(rival, 10, 15))
    landed = commit_append(table, append, look_first=True)
    assert landed.found
    assert landed.progress.offset(KEY) == Offset(10)
    assert stored_ids(table) == list(range(15))


def test_a_failed_commit_deletes_nothing(table: Table, rival: Table, tmp_path: Path) -> None:
    """pyiceberg would delete its manifests; had the commit landed after all, the table would be unreadable."""
    with pytest.raises(Killed):
        commit_append(table, append_of(table, 0, 10), faults=kill_at("inside_commit"))
    before = {file.name for file in tmp_path.rglob("*.avro")}
    commit_append(rival, append_of(rival, 0, 10))
    table.refresh()
    with pytest.raises(WorldMoved):
        commit_append(table, append_of(table, 0, 10))
    assert before <= {file.name for file in tmp_path.rglob("*.avro")}


def test_a_head_without_a_key_is_walked_past(table: Table) -> None:
    commit_append(table, append_of(table, 0, 10))
    table.delete(EqualTo("symbol", "BTCUSDT"))
    assert table.current_snapshot().summary.additional_properties.get("k2ray.offsets") is None  # type: ignore[union-attr]
    assert committed(table) == 10
    commit_append(table, append_of(table, 10, 12))
    assert stored_ids(table) == [10, 11]


def test_a_rollback_makes_the_writer_start_over_from_there(table: Table) -> None:
    first = commit_append(table, append_of(table, 0, 10))
    commit_append(table, append_of(table, 10, 20))
    table.manage_snapshots().rollback_to_snapshot(first.snapshot_id).commit()
    assert committed(table) == 10
    with pytest.raises(WorldMoved, match="committed is 10, the batch starts at 20"):
        commit_append(table, append_of(table, 20, 30))
    commit_append(table, append_of(table, 10, 20))
    assert stored_ids(table) == list(range(20))


def test_a_batch_whose_files_were_cleaned_away_is_refused(table: Table) -> None:
    """After an operator's rollback an abandoned batch is contiguous again; upkeep may have removed its files."""
    append = append_of(table, 0, 10)
    table.io.delete(append.files[0].file_path)
    with pytest.raises(WorldMoved, match="is gone"):
        commit_append(table, append)


def test_an_absent_partition_counts_as_zero(table: Table, rival: Table) -> None:
    """A topic that was added later is in nobody's key; two writers cannot both start it."""
    append = append_of(table, 0, 4, topic="market.crypto.agg_trades.binance")
    commit_append(rival, append_of(rival, 0, 4, topic="market.crypto.agg_trades.binance"))
    table.refresh()
    with pytest.raises(WorldMoved):
        commit_append(table, append)
    assert stored_ids(table) == list(range(4))


def test_a_table_with_rows_and_without_any_key_is_not_written(tmp_path: Path) -> None:
    """Starting anew would append the full load twice (trap 20)."""
    settings = lake_settings(tmp_path)
    catalog = open_catalog(settings, DataDir(tmp_path))
    table = create_table(catalog, settings, "trades")
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as foreign:
        foreign.append_data_file(append_of(table, 0, 3).files[0])
    with pytest.raises(OperatorNeeded, match="no progress key"):
        ensure_table(catalog, settings, "trades", {TRADES_TOPIC: 2})
    with pytest.raises(OperatorNeeded, match="no snapshot of the table carries a progress key"):
        commit_append(table, append_of(table, 0, 10))


def test_a_kill_between_creation_and_genesis_is_recovered(tmp_path: Path) -> None:
    for point in ("before_genesis", "genesis"):
        with pytest.raises(Killed):
            open_table(tmp_path, faults=kill_at(point))
    table = open_table(tmp_path)
    assert len(table.metadata.snapshots) == 1
    assert committed(table) == 0
    assert stored_ids(table) == []


def test_two_that_create_a_table_at_once_make_one_genesis(tmp_path: Path) -> None:
    made = []

    def rival(point: str) -> None:
        if point == "genesis" and not made:
            made.append(True)
            open_table(tmp_path)

    table = open_table(tmp_path, faults=rival)
    assert made
    assert len(table.metadata.snapshots) == 1


def test_pyiceberg_runs_our_commit_on_every_attempt(
    table: Table, rival: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contract: `_commit` builds on `self._transaction.table_metadata`, and `snapshot_properties` reach the summary."""
    heads = []
    original = _FencedAppend._commit

    def noted(self: _FencedAppend) -> Any:
        heads.append(self._transaction.table_metadata.current_snapshot_id)
        return original(self)

    monkeypatch.setattr(_FencedAppend, "_commit", noted)
    commit_append(table, append_of(table, 0, 10))
    rival.refresh()
    Interposed(monkeypatch, table).before = iter([lambda: rival.delete(EqualTo("symbol", "BTCUSDT"))])
    landed = commit_append(table, append_of(table, 10, 20))
    assert len(heads) == 3
    assert len(set(heads)) == 3
    summary = table.snapshot_by_id(landed.snapshot_id).summary.additional_properties  # type: ignore[union-attr]
    assert "[20,-1]" in summary["k2ray.offsets"]


def test_pyiceberg_still_calls_the_clean_up_that_we_override(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract: were they renamed, our overrides would do nothing and a failed commit would delete manifests again."""
    called = []
    monkeypatch.setattr(_FencedAppend, "_clean_all_uncommitted", lambda _: called.append("all"))
    monkeypatch.setattr(_FencedAppend, "_cleanup_uncommitted", lambda _: called.append("failed attempts"))
    with monkeypatch.context() as patch:
        patch.setattr(table.catalog, "commit_table", _refuse)
        patch.setitem(table.metadata.properties, "commit.retry.num-retries", "1")
        with pytest.raises(CatalogUnavailable):
            commit_append(table, append_of(table, 0, 10))
    assert called == ["all"]
    commit_append(table, append_of(table, 0, 10))
    assert called == ["all", "failed attempts"]


def test_pyiceberg_merges_manifests_in_the_class_that_we_extend() -> None:
    """Contract: the fast append never merges, so history would make every read slower."""
    assert issubclass(_MergeAppendFiles, _FastAppendFiles)
    assert _MergeAppendFiles._process_manifests is not _FastAppendFiles._process_manifests


def _refuse(*_: Any, **__: Any) -> None:
    raise CommitFailedException("busy")


def void(_: object) -> None:
    """Discard a result."""
