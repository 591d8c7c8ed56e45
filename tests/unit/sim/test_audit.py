"""The audit finds what is lost, doubled and invented by id, whatever the counts say."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.table import Table

from k2ray.lake.commit import commit_append
from k2ray.lake.progress import committed_progress
from k2ray.sim.audit import audit, freshness_s, seconds_sent
from k2ray.sim.truth import TRUTH_SCHEMA
from tests.support import lake


def truth(
    folder: Path, ids: list[int], *, epochs: list[int] | None = None, faults: dict[int, str] | None = None
) -> Path:
    rows = len(ids)
    values = {
        name: pa.nulls(rows, TRUTH_SCHEMA.field(name).type) if TRUTH_SCHEMA.field(name).nullable else None
        for name in TRUTH_SCHEMA.names
    }
    values |= {
        "channel": pa.array(["trade"] * rows).dictionary_encode(),
        "symbol": pa.array(["BTCUSDT"] * rows).dictionary_encode(),
        "epoch": pa.array(epochs or [0] * rows, pa.int32()),
        "id": pa.array(ids, pa.int64()),
        "event_us": pa.array([lake.NOON_US] * rows, pa.int64()),
        "fault": pa.array([(faults or {}).get(number) for number in ids], pa.string()).dictionary_encode(),
    }
    file = folder / "truth.parquet"
    pq.write_table(pa.table([values[name] for name in TRUTH_SCHEMA.names], schema=TRUTH_SCHEMA), file)
    return file


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return lake.open_table(tmp_path, partitions=1)


def store(table: Table, ids: list[int], space: str = "") -> None:
    """Append rows as one commit of its own."""
    progress = committed_progress(table.metadata)
    assert progress is not None
    start = progress.offset((lake.TRADES_TOPIC, 0)).next
    commit_append(table, lake.append_of(table, start, start + 1, lake.trades(ids, space=space)))


def test_equal_ids_are_exact(table: Table, tmp_path: Path) -> None:
    store(table, [5, 6])
    store(table, [7])
    found = audit(truth(tmp_path, [5, 6, 7]), table, "trade")
    assert (found.sent, found.stored, found.exact) == (3, 3, True)


def test_equal_counts_with_other_ids_are_not_exact(table: Table, tmp_path: Path) -> None:
    """Trap 20: an audit by counts passed a table that held one part twice and another not at all."""
    store(table, [5, 6, 6, 9])
    found = audit(truth(tmp_path, [5, 6, 7, 8]), table, "trade")
    assert (found.sent, found.stored) == (4, 4)
    assert (found.lost, found.duplicated, found.invented) == (2, 1, 1)
    assert not found.exact


def test_what_came_before_anybody_listened_is_not_lost(table: Table, tmp_path: Path) -> None:
    store(table, [7, 8])
    assert audit(truth(tmp_path, [5, 6, 7, 8]), table, "trade").exact


def test_what_happened_before_the_time_asked_for_is_not_lost(table: Table, tmp_path: Path) -> None:
    store(table, [5])
    file = truth(tmp_path, [5, 6])
    assert audit(file, table, "trade").lost == 1
    assert audit(file, table, "trade", since_us=lake.NOON_US).lost == 1
    assert audit(file, table, "trade", since_us=lake.NOON_US + 1).lost == 0


def test_an_empty_table_has_lost_everything(table: Table, tmp_path: Path) -> None:
    found = audit(truth(tmp_path, [5, 6]), table, "trade")
    assert (found.sent, found.stored, found.lost) == (2, 0, 2)


def test_restarted_ids_are_matched_in_their_own_numbering(table: Table, tmp_path: Path) -> None:
    store(table, [5, 6])
    store(table, [1, 5], space="#2")
    found = audit(truth(tmp_path, [5, 6, 1, 2, 5], epochs=[0, 0, 1, 1, 1]), table, "trade")
    assert (found.sent, found.stored, found.lost, found.invented) == (5, 4, 1, 0)


def test_frames_that_a_fault_spoilt_need_not_be_there(table: Table, tmp_path: Path) -> None:
    store(table, [5, 7])
    assert audit(truth(tmp_path, [5, 6, 7], faults={6: "malformed"}), table, "trade").exact


def test_other_spaces_are_not_mixed_in(table: Table, tmp_path: Path) -> None:
    store(table, [5])
    store(table, [900], space="agg")
    assert audit(truth(tmp_path, [5]), table, "trade").exact


def test_freshness_is_from_event_to_commit(table: Table) -> None:
    assert freshness_s(table) is None
    store(table, [1, 2, 3])
    snapshot = table.current_snapshot()
    assert snapshot is not None
    expected = snapshot.timestamp_ms / 1e3 - (lake.NOON_US + 2_000) / 1e6
    assert freshness_s(table, [0.5]) == pytest.approx([expected], abs=1e-3)


def test_the_seconds_in_which_trades_happened_are_known(tmp_path: Path) -> None:
    file = truth(tmp_path, [5, 6])
    assert seconds_sent(file) == frozenset()
    rows = pq.read_table(file)
    times = pa.array([lake.NOON_US - 1, lake.NOON_US], pa.int64())
    pq.write_table(rows.set_column(rows.schema.get_field_index("trade_us"), "trade_us", times), file)
    assert seconds_sent(file) == {lake.NOON_US // 1_000_000 - 1, lake.NOON_US // 1_000_000}
