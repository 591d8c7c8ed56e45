"""Expiry, tags and the removal of files that nothing can name any more."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pyiceberg.table import Table

from k2ray import metrics
from k2ray.clock import ManualClock
from k2ray.errors import OperatorNeeded
from k2ray.lake import sweep, upkeep_plan
from k2ray.lake.catalog import create_table, open_catalog
from k2ray.lake.commit import commit_append
from k2ray.lake.durable import local_path
from k2ray.lake.progress import Offset, committed_progress
from k2ray.lake.sweep import MARGIN_US
from k2ray.lake.upkeep import TableUpkeep, UpkeepReport
from k2ray.layout import DataDir
from k2ray.settings import Settings, load_settings
from tests.support.compaction import clock_after, commit_small
from tests.support.lake import NOON_US, TRADES_TOPIC, Killed, append_of, kill_at, open_table, stored_ids, trades

HOUR_S = 3600


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now_us=int(datetime.now(UTC).timestamp()) * 1_000_000)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return open_table(tmp_path)


def settings(folder: Path, **upkeep: float) -> Settings:
    kept = {"snapshots_kept": 5, "expire_every": 3, "metadata_versions_kept": 4, **upkeep}
    return load_settings(arguments={"data_dir": str(folder), "lake": {"upkeep": kept}}, environ={})


def upkeep_of(folder: Path, clock: ManualClock, leases: Any = tuple, **upkeep: float) -> TableUpkeep:
    return TableUpkeep(settings(folder, **upkeep), DataDir(folder), "trades", clock=clock, leases=leases)


def commit_many(table: Table, count: int) -> None:
    progress = committed_progress(table.metadata)
    assert progress is not None
    start = progress.offset((TRADES_TOPIC, 0)).next
    for offset in range(start, start + count):
        commit_append(table, append_of(table, offset, offset + 1))


def age(folder: Path, pattern: str, seconds: float) -> list[Path]:
    found = list(folder.rglob(pattern))
    for file in found:
        stamp = file.stat().st_mtime - seconds
        os.utime(file, (stamp, stamp))
    return found


def files(folder: Path, pattern: str) -> set[str]:
    return {file.name for file in folder.rglob(pattern)}


def test_a_table_without_snapshots_is_left_alone(tmp_path: Path, clock: ManualClock) -> None:
    assert upkeep_of(tmp_path, clock).step() == UpkeepReport()
    create_table(open_catalog(settings(tmp_path), DataDir(tmp_path)), settings(tmp_path), "trades")
    assert upkeep_of(tmp_path, clock).step() == UpkeepReport()


def test_snapshots_grow_only_to_the_limit_and_the_rows_stay(tmp_path: Path, table: Table, clock: ManualClock) -> None:
    """Trap 19: no expiry, so that commits took ever longer and left more metadata than data."""
    upkeep = upkeep_of(tmp_path, clock)
    upkeep.step()
    for _ in range(6):
        commit_many(table, 4)
        upkeep.step()
        table.refresh()
        assert len(table.metadata.snapshots) <= 5 + 3 + 1
        assert len(table.metadata.snapshot_log) <= 5 + 3 + 1
    commit_many(table, 1)
    assert stored_ids(table) == list(range(25))
    named = {local_path(snapshot.manifest_list) for snapshot in table.metadata.snapshots}
    assert {str(file) for file in tmp_path.rglob("snap-*.avro")} == named
    ledgers = {snapshot.summary.additional_properties.get("k2ray.ledger") for snapshot in table.metadata.snapshots}  # type: ignore[union-attr]
    assert files(tmp_path, "*.arrow") == {str(ledger).rsplit("/", 1)[-1] for ledger in ledgers if ledger}
    for snapshot in table.metadata.snapshots:
        assert table.scan(snapshot_id=snapshot.snapshot_id).to_arrow().num_rows >= 0


def test_old_metadata_files_are_deleted(tmp_path: Path, clock: ManualClock) -> None:
    from tests.support.lake import ensure_table

    wanted = settings(tmp_path)
    table = ensure_table(open_catalog(wanted, DataDir(tmp_path)), wanted, "trades", {TRADES_TOPIC: 1})
    commit_many(table, 10)
    upkeep_of(tmp_path, clock).step()
    assert len(files(tmp_path, "*.metadata.json")) == 5


def test_one_tag_an_hour_for_a_week(tmp_path: Path, table: Table, clock: ManualClock) -> None:
    upkeep = upkeep_of(tmp_path, clock)
    first = upkeep.step().tagged
    assert first is not None
    assert upkeep.step().tagged is None
    commit_many(table, 1)
    assert upkeep.step().tagged is None
    clock.advance(HOUR_S)
    assert upkeep.step().tagged not in {None, first}
    clock.advance(HOUR_S)
    assert upkeep.step().tagged is None, "nothing is new since the last tag"
    clock.advance(7 * 24 * HOUR_S)
    commit_many(table, 1)
    upkeep.step()
    table.refresh()
    assert first not in table.metadata.refs
    assert len(table.metadata.refs) == 2


def test_after_a_day_a_tag_of_every_sixth_hour_stays(tmp_path: Path, table: Table) -> None:
    """Each tagged snapshot costs every commit its metadata: 168 of them were more than the 100 newest snapshots."""
    clock = ManualClock(now_us=1_767_225_600_000_000)
    upkeep = upkeep_of(tmp_path, clock, compact=False)
    for _ in range(40):
        commit_many(table, 1)
        upkeep.step()
        clock.advance(HOUR_S)
    table.refresh()
    tags = sorted(name for name in table.metadata.refs if name.startswith("hourly-"))
    assert tags[:3] == ["hourly-2026-01-01T00Z", "hourly-2026-01-01T06Z", "hourly-2026-01-01T12Z"]
    assert len(tags) == 3 + 25


def test_a_tag_waits_for_the_compaction_of_the_hour_before(tmp_path: Path, table: Table) -> None:
    """It would keep all of that hour's small files on disk for a week."""
    clock = clock_after(0.9)
    commit_small(table, 4)
    upkeep = upkeep_of(tmp_path, clock, compact_min_files=3, compact_settle_s=300)
    upkeep.step()
    commit_small(table, 1, at_us=NOON_US + int(0.95 * HOUR_S) * 1_000_000)
    clock.advance(0.1 * HOUR_S)
    report = upkeep.step()
    assert (report.compaction.done, report.tagged) == (0, None)
    clock.advance(300)
    report = upkeep.step()
    assert report.compaction.done == 1
    assert report.tagged == "hourly-2024-06-01T13Z"
    table.refresh()
    tagged = table.metadata.refs[report.tagged].snapshot_id
    assert len(list(table.scan(snapshot_id=tagged).plan_files())) == 1


def test_a_tag_does_not_wait_for_ever(tmp_path: Path, table: Table) -> None:
    clock = clock_after(1)
    commit_small(table, 4)
    upkeep = upkeep_of(tmp_path, clock, compact_min_files=3, compact_settle_s=3_000)
    assert upkeep.step().tagged is None
    clock.advance(2_700)
    assert upkeep.step().tagged is not None


def test_small_files_go_once_no_snapshot_names_them(tmp_path: Path, table: Table) -> None:
    clock = clock_after(1)
    commit_small(table, 4)
    small = files(tmp_path, "*.parquet")
    upkeep = upkeep_of(tmp_path, clock, compact_min_files=3, compact_settle_s=1, snapshots_kept=2, expire_every=1)
    assert upkeep.step().compaction.done == 1
    assert small < files(tmp_path, "*.parquet"), "older snapshots still name them"
    for hour in range(1, 3):
        commit_small(table, 1, at_us=NOON_US + hour * HOUR_S * 1_000_000)
        clock.advance(HOUR_S)
        upkeep.step()
    assert not small & files(tmp_path, "*.parquet")
    assert stored_ids(table) == list(range(240))


def test_a_file_of_a_killed_compaction_goes_when_it_can_no_longer_land(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clock_after(1)
    commit_small(table, 4)
    dying = upkeep_of(tmp_path, clock, compact_min_files=3, compact_settle_s=1)
    monkeypatch.setattr(dying._compactor, "_faults", kill_at("compaction_verified"))
    with pytest.raises(Killed):
        dying.step()
    (stray,) = files(tmp_path, "k2ray-compacted-*")
    upkeep = upkeep_of(tmp_path, clock, compact=False)
    upkeep.step()
    assert stray in files(tmp_path, "*.parquet"), "young: it may be about to land"
    age(tmp_path, stray, 2 * MARGIN_US / 1e6)
    commit_small(table, 1)
    clock.advance(HOUR_S)
    upkeep.step()
    assert stray not in files(tmp_path, "*.parquet")
    assert stored_ids(table) == list(range(200))


def test_a_sweep_goes_through_the_folders_a_page_a_look(
    tmp_path: Path, table: Table, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing a year of files at once would hold up everything else that upkeep does."""
    monkeypatch.setattr(sweep, "PAGE_FILES", 1)
    lost = [append_of(table, 0, 1, trades([9], start_us=NOON_US + day * 86_400_000_000)) for day in range(5)]
    assert len({append.files[0].file_path.split("timestamp_day=")[1][:10] for append in lost}) == 5
    commit_many(table, 1)
    age(tmp_path, "*", 3 * HOUR_S)
    upkeep = upkeep_of(tmp_path, clock, compact=False)
    deleted = [upkeep.step().files_deleted for _ in range(8)]
    assert max(deleted) < sum(deleted)
    assert sum(1 for count in deleted if count) >= 4
    assert len(files(tmp_path, "*.parquet")) == 1


def test_a_file_committed_after_a_rewind_is_not_taken_for_a_dead_one(
    tmp_path: Path, table: Table, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of several looks that began before the rewind would find offsets that were passed long ago."""
    monkeypatch.setattr(sweep, "PAGE_FILES", 1)
    for day in range(1, 4):
        append_of(table, 0, 1, trades([9], start_us=NOON_US + day * 86_400_000_000))
    commit_many(table, 5)
    upkeep = upkeep_of(tmp_path, clock, compact=False)
    upkeep.step()
    at = append_of(table, 5, 6)
    back = replace(at, files=(), end={(TRADES_TOPIC, 0): Offset(2)})
    commit_append(table, back)
    commit_append(table, append_of(table, 2, 3, trades([100])))
    for _ in range(8):
        upkeep.step()
    assert stored_ids(table) == [0, 1, 2, 3, 4, 100]


def test_a_neglected_table_is_worked_off_look_by_look(
    tmp_path: Path, table: Table, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_plan, "MAX_EXPIRED", 6)
    commit_many(table, 20)
    upkeep = upkeep_of(tmp_path, clock)
    assert [upkeep.step().snapshots_expired for _ in range(4)] == [6, 6, 5, 0]
    assert stored_ids(table) == list(range(20))


def test_every_metric_of_upkeep_moves(tmp_path: Path, table: Table, clock: ManualClock) -> None:
    def removed(kind: str) -> float:
        value: float = metrics.ORPHANS_REMOVED.labels("trades", kind)._value.get()
        return value

    before = removed("manifest"), removed("ledger"), removed("data")
    looks = REGISTRY.get_sample_value("k2ray_upkeep_seconds_count", {"table": "trades"}) or 0
    expired = metrics.SNAPSHOTS_EXPIRED.labels("trades")._value.get()
    dead = append_of(table, 0, 1)
    commit_many(table, 20)
    report = upkeep_of(tmp_path, clock).step()
    assert metrics.SNAPSHOTS_EXPIRED.labels("trades")._value.get() == expired + report.snapshots_expired
    assert metrics.TABLE_SNAPSHOTS.labels("trades")._value.get() == 5
    assert metrics.TABLE_METADATA_BYTES.labels("trades")._value.get() > 1_000
    assert metrics.DISK_FREE_BYTES.labels("warehouse")._value.get() > 0
    assert (REGISTRY.get_sample_value("k2ray_upkeep_seconds_count", {"table": "trades"}) or 0) > looks
    after = removed("manifest"), removed("ledger"), removed("data")
    assert all(new > old for new, old in zip(after, before, strict=True))
    assert not Path(str(local_path(dead.files[0].file_path))).exists()


def test_a_tagged_snapshot_can_still_be_read_after_expiry(tmp_path: Path, table: Table, clock: ManualClock) -> None:
    commit_many(table, 2)
    upkeep = upkeep_of(tmp_path, clock)
    tag = upkeep.step().tagged
    assert tag is not None
    commit_many(table, 20)
    assert upkeep.step().snapshots_expired > 0
    table.refresh()
    assert len(table.scan(snapshot_id=table.metadata.refs[tag].snapshot_id).to_arrow()) == 2


def test_a_leased_snapshot_stays(tmp_path: Path, table: Table, clock: ManualClock) -> None:
    commit_many(table, 2)
    leased = table.metadata.current_snapshot_id
    commit_many(table, 20)
    assert upkeep_of(tmp_path, clock, leases=lambda: [leased]).step().snapshots_expired > 0
    table.refresh()
    assert table.snapshot_by_id(leased) is not None  # type: ignore[arg-type]
    assert len(table.scan(snapshot_id=leased).to_arrow()) == 2


def test_the_newest_key_survives_any_number_of_foreign_snapshots(
    tmp_path: Path, table: Table, clock: ManualClock
) -> None:
    """Expiring a parent cuts the lineage, and the key behind it would be lost for good."""
    commit_many(table, 3)
    for symbol in range(12):
        with table.transaction() as transaction, transaction.update_snapshot().fast_append() as foreign:
            foreign.append_data_file(append_of(table, 1000 + symbol, 1001 + symbol).files[0])
    upkeep_of(tmp_path, clock).step()
    table.refresh()
    progress = committed_progress(table.metadata)
    assert progress is not None
    assert progress.offset((TRADES_TOPIC, 0)).next == 3


def test_an_expiry_that_races_a_rollback_does_not_remove_main(
    tmp_path: Path, table: Table, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expiry by itself sends no requirements: the snapshot that an operator just rolled back to would be removed."""
    commit_many(table, 20)
    old = sorted(table.metadata.snapshots, key=lambda snapshot: snapshot.sequence_number or 0)[2].snapshot_id
    catalog = open_catalog(settings(tmp_path), DataDir(tmp_path))
    commit = catalog.commit_table
    calls = []

    def rolled_back_first(*args: Any, **kwargs: Any) -> Any:
        if not calls:
            calls.append(True)
            table.manage_snapshots().set_current_snapshot(old).commit()
        return commit(*args, **kwargs)

    monkeypatch.setattr(catalog, "commit_table", rolled_back_first)
    TableUpkeep(settings(tmp_path), DataDir(tmp_path), "trades", clock=clock, catalog=catalog).step()
    table.refresh()
    assert table.metadata.current_snapshot_id == old
    assert stored_ids(table) == [0, 1]


def test_a_table_without_any_key_is_not_touched(tmp_path: Path, clock: ManualClock) -> None:
    catalog = open_catalog(settings(tmp_path), DataDir(tmp_path))
    table = create_table(catalog, settings(tmp_path), "trades")
    for offset in range(12):
        with table.transaction() as transaction, transaction.update_snapshot().fast_append() as foreign:
            foreign.append_data_file(append_of(table, offset, offset + 1).files[0])
    with pytest.raises(OperatorNeeded, match="no snapshot"):
        upkeep_of(tmp_path, clock).step()
    table.refresh()
    assert len(table.metadata.snapshots) == 12


def test_a_staged_file_stays_however_old_until_the_offset_has_passed(
    tmp_path: Path, table: Table, clock: ManualClock
) -> None:
    """A suspended laptop wakes with a three-day-old file about to be committed."""
    append = append_of(table, 0, 10)
    age(tmp_path, "*", 3 * 24 * HOUR_S)
    upkeep_of(tmp_path, clock).step()
    commit_append(table, append)
    assert stored_ids(table) == list(range(10))


def test_what_dead_attempts_left_is_removed(tmp_path: Path, table: Table, clock: ManualClock) -> None:
    dead = append_of(table, 0, 10)
    with pytest.raises(Killed):
        commit_append(table, dead, faults=kill_at("inside_commit"))
    age(tmp_path, "*", 2 * MARGIN_US / 1e6)
    lost = files(tmp_path, "*.avro") | files(tmp_path, "*.parquet") | files(tmp_path, "*.arrow")
    table.refresh()
    genesis = table.metadata.current_snapshot()
    assert genesis is not None
    lost -= {genesis.manifest_list.rsplit("/", 1)[-1]}
    commit_many(table, 1)
    report = upkeep_of(tmp_path, clock).step()
    assert report.files_deleted == len(lost) == 4
    left = files(tmp_path, "*")
    assert not lost & left
    assert stored_ids(table) == [0]


def test_files_of_others_are_never_removed(tmp_path: Path, table: Table, clock: ManualClock) -> None:
    folder = Path(str(local_path(table.location())))
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "notes.parquet").write_text("mine")
    (folder / "metadata" / "README.txt").write_text("mine")
    age(tmp_path, "*", 30 * 24 * HOUR_S)
    commit_many(table, 1)
    upkeep_of(tmp_path, clock).step()
    assert (folder / "data" / "notes.parquet").exists()
    assert (folder / "metadata" / "README.txt").exists()


def test_history_does_not_make_a_commit_dearer(tmp_path: Path, table: Table, clock: ManualClock) -> None:
    """Trap 19, in counts instead of time: what a commit reads and writes is the same after 30 and after 150 commits."""

    def cost() -> tuple[int, int, int]:
        table.refresh()
        head = table.current_snapshot()
        assert head is not None
        metadata = Path(str(local_path(table.metadata_location)))
        document = json.loads(metadata.read_text())
        return len(document["snapshots"]), len(head.manifests(table.io)), metadata.stat().st_size

    upkeep = upkeep_of(tmp_path, clock)
    costs = []
    for _ in range(5):
        commit_many(table, 30)
        upkeep.step()
        costs.append(cost())
    assert costs[-1][0] <= costs[0][0] * 1.5
    assert max(manifests for _, manifests, _ in costs) <= 60
    assert costs[-1][2] <= costs[0][2] * 1.5
