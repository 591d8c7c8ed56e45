"""Compaction of real tables: the same rows in fewer files, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyiceberg.expressions import EqualTo
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation
from pyiceberg.types import StringType

from k2ray import metrics
from k2ray.lake import compaction, compaction_merge
from k2ray.lake.commit import Append, commit_append
from k2ray.lake.compaction_merge import CannotCompact, Columns, Merge, Source
from k2ray.lake.durable import local_path
from k2ray.lake.fingerprint import Fingerprint
from k2ray.lake.progress import Offset, committed_progress
from k2ray.lake.stage import ROWS_PER_GROUP, Origin, concat_rows, stage
from tests.support.compaction import KEY, clock_after, commit_small, compactor, data_files
from tests.support.lake import NOON_US, append_of, constant, open_table, quotes, stored_ids, trades

HOUR_US = 3_600_000_000


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return open_table(tmp_path)


def everything(table: Table) -> pa.Table:
    """Return all rows and columns of the newest snapshot in one order."""
    table.refresh()
    return table.scan().to_arrow().combine_chunks().sort_by([("symbol", "ascending"), ("source_sequence", "ascending")])


def test_files_of_a_closed_hour_become_one_with_the_same_rows_and_the_same_key(tmp_path: Path, table: Table) -> None:
    commit_small(table, 5)
    before, progress = everything(table), committed_progress(table.metadata)
    report = compactor(tmp_path, clock_after(1)).step(table, 0)
    assert (report.done, report.files, report.rows, report.left) == (1, 5, 200, 0)
    assert len(data_files(table)) == 1
    assert everything(table) == before
    head = table.current_snapshot()
    assert head is not None
    assert head.summary is not None
    assert head.summary.operation == Operation.REPLACE
    after = committed_progress(table.metadata)
    assert after is not None
    assert progress is not None
    assert (after.snapshot_id, after.offsets, after.ledger) == (head.snapshot_id, progress.offsets, progress.ledger)
    totals = head.summary.additional_properties
    assert (totals["total-records"], totals["total-data-files"], totals["deleted-data-files"]) == ("200", "1", "5")
    # The writer goes on as if nothing had happened.
    commit_small(table, 1)
    assert stored_ids(table) == list(range(240))


def test_a_running_hour_is_left_alone(tmp_path: Path, table: Table) -> None:
    commit_small(table, 5)
    assert compactor(tmp_path, clock_after(0.5)).step(table, 0).done == 0
    assert len(data_files(table)) == 5


def test_the_new_file_is_sorted_and_its_row_groups_prune_by_symbol(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged from a spilled chunk, another one in memory and a file too large for a chunk."""
    monkeypatch.setattr(compaction_merge, "CHUNK_ROWS", 100_000)
    commit_small(table, 3, 24_000)
    commit_small(table, 1, 60_000)
    commit_small(table, 3, 24_000)
    before = everything(table)
    report = compactor(tmp_path, clock_after(1)).step(table, 0)
    assert (report.done, report.rows) == (1, 204_000)
    (path,) = data_files(table)
    file = pq.ParquetFile(str(local_path(path)))
    rows = file.read(columns=["symbol", "timestamp"])
    order = pc.sort_indices(rows, sort_keys=[("symbol", "ascending"), ("timestamp", "ascending")])
    assert rows.take(order).equals(rows)
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    assert [group.num_rows for group in groups[:-1]] == [ROWS_PER_GROUP] * (len(groups) - 1)
    statistics = [group.column(1).statistics for group in groups]
    assert sum(one.min <= "BTCUSDT" <= one.max for one in statistics) <= len(groups) // 3 + 2
    assert everything(table) == before
    assert not list((tmp_path / "scratch").iterdir())


def test_quotes_are_compacted_too(tmp_path: Path) -> None:
    table = open_table(tmp_path, table_name="quotes")
    for number in range(4):
        (file,) = stage(
            table,
            "quotes",
            concat_rows([quotes(range(number * 9 + 1, number * 9 + 10, 3))]),
            Origin("q", 0, number, number + 1),
        )
        commit_append(table, Append((file,), {KEY: Offset(number)}, {KEY: Offset(number + 1)}, None, None, {}))
    before = everything(table)
    small = compactor(tmp_path, clock_after(1))
    small._name = "quotes"
    assert small.step(table, 0).done == 1
    assert everything(table) == before
    assert len(data_files(table)) == 1


def test_vendor_data_conditions_and_two_numberings_survive(tmp_path: Path, table: Table) -> None:
    for number in range(3):
        rows = trades(range(number * 6, number * 6 + 6), ["A", "B"] * 3, space="#2" if number == 1 else "")
        place = rows.schema.get_field_index("vendor_data")
        maps = pa.array([[("M", str(row))] if row % 2 else None for row in range(6)], rows.schema.field(place).type)
        rows = rows.set_column(place, rows.schema.field(place), maps)
        place = rows.schema.get_field_index("trade_conditions")
        lists = pa.array([["x", str(row)] if row % 3 else [] for row in range(6)], rows.schema.field(place).type)
        commit_append(
            table, append_of(table, number, number + 1, rows.set_column(place, rows.schema.field(place), lists))
        )
    before = everything(table)
    assert compactor(tmp_path, clock_after(1)).step(table, 0).done == 1
    assert everything(table) == before


def test_files_from_before_and_after_a_rename_become_one(tmp_path: Path, table: Table) -> None:
    commit_small(table, 2)
    with table.update_schema() as update:
        update.rename_column("side", "aggressor")
    commit_small(table, 2)
    before = everything(table)
    report = compactor(tmp_path, clock_after(1)).step(table, 0)
    assert (report.done, report.refused) == (1, 0)
    assert everything(table) == before
    assert set(pc.unique(table.scan().to_arrow()["aggressor"]).to_pylist()) == {"BUY", "SELL"}


def test_a_column_that_somebody_else_added_is_never_dropped(tmp_path: Path, table: Table) -> None:
    commit_small(table, 3)
    with table.update_schema() as update:
        update.add_column("desk", StringType())
    path = str(local_path(data_files(table)[1]))
    rows = pq.read_table(path)
    number = str(table.schema().find_field("desk").field_id)
    desk = pa.field("desk", pa.string(), metadata={"PARQUET:field_id": number})
    pq.write_table(rows.append_column(desk, pa.array(["mine"] * rows.num_rows)), path, store_schema=False)
    before = everything(table)
    busy = compactor(tmp_path, clock_after(1))
    assert busy.step(table, 0).refused == 1
    assert "somebody else added" in str(busy.trouble)
    assert busy.step(table, 0).refused == 0, "it is not tried again and again"
    assert everything(table) == before
    assert "mine" in before["desk"].to_pylist()


def test_a_table_with_delete_files_is_left_alone(tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewritten row would get a newer sequence number and escape a delete that came before."""
    commit_small(table, 4)
    busy = compactor(tmp_path, clock_after(1))
    monkeypatch.setattr(busy._live, "has_deletes", lambda *_: True)
    assert busy.step(table, 0).done == 0


def test_rows_that_come_out_other_than_they_went_in_are_refused(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_small(table, 4)
    before = data_files(table)
    rows = Merge.rows

    def wrong(self: Merge) -> Any:
        for piece in rows(self):
            place = piece.schema.get_field_index("side")
            yield piece.set_column(place, piece.schema.field(place), constant("BUY", piece.num_rows))

    monkeypatch.setattr(Merge, "rows", wrong)
    refused = metrics.COMPACTIONS.labels("trades", "refused")._value.get()
    busy = compactor(tmp_path, clock_after(1))
    assert busy.step(table, 0).refused == 1
    assert "not those that went in" in str(busy.trouble)
    assert metrics.COMPACTIONS.labels("trades", "refused")._value.get() == refused + 1
    assert data_files(table) == before
    assert not list(tmp_path.rglob("k2ray-compacted-*")), "what was refused is removed at once"


def test_rows_that_are_missing_are_refused(tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_small(table, 4)
    monkeypatch.setattr(compaction, "fingerprint", lambda *_: Fingerprint(159, 1))
    assert compactor(tmp_path, clock_after(1)).step(table, 0).refused == 1
    assert stored_ids(table) == list(range(160))


def test_a_damaged_file_is_named_and_its_neighbours_hour_is_compacted(tmp_path: Path, table: Table) -> None:
    commit_small(table, 3)
    (damaged, *_) = data_files(table)
    commit_small(table, 3, at_us=NOON_US + HOUR_US)
    Path(str(local_path(damaged))).write_bytes(b"PAR1 not really PAR1")
    busy = compactor(tmp_path, clock_after(2))
    report = busy.step(table, 1e9)
    assert (report.refused, report.done) == (1, 1)
    assert damaged in str(busy.trouble)


def test_what_was_refused_is_no_trouble_any_more_once_it_is_gone(tmp_path: Path, table: Table) -> None:
    """It was said until upkeep's next start, weeks after an operator had mended it."""
    commit_small(table, 3)
    (damaged, *_) = data_files(table)
    place = Path(str(local_path(damaged)))
    whole = place.read_bytes()
    place.write_bytes(b"PAR1 not really PAR1")
    busy = compactor(tmp_path, clock_after(2))
    assert busy.step(table, 1e9).refused == 1
    assert busy.step(table, 1e9).refused == 0
    assert damaged in str(busy.trouble), "it lies there still"
    place.write_bytes(whole)
    commit_small(table, 1)  # its hour is planned anew, with one file more
    assert busy.step(table, 1e9).done == 1
    busy.plan(table)
    assert busy.trouble is None


def test_a_look_ends_after_its_budget_and_says_what_is_left(tmp_path: Path, table: Table) -> None:
    for hour in range(3):
        commit_small(table, 3, at_us=NOON_US + hour * HOUR_US)
    clock = clock_after(3)
    busy = compactor(tmp_path, clock)
    report = busy.step(table, clock.monotonic_s() - 1)
    assert (report.done, report.left) == (1, 2)
    report = busy.step(table, clock.monotonic_s() + 1)
    assert (report.done, report.left) == (2, 0)
    assert len(data_files(table)) == 3
    assert stored_ids(table) == list(range(360))


def test_every_metric_of_compaction_moves(tmp_path: Path, table: Table) -> None:
    def now() -> list[float]:
        counters = (metrics.COMPACTED_FILES, metrics.COMPACTED_ROWS, metrics.COMPACTED_BYTES)
        done = metrics.COMPACTIONS.labels("trades", "done")
        return [one._value.get() for one in (*(each.labels("trades") for each in counters), done)]

    commit_small(table, 4)
    before = now()
    compactor(tmp_path, clock_after(1)).step(table, 0)
    files, rows, size, done = (after - old for after, old in zip(now(), before, strict=True))
    assert (files, rows, done) == (4, 160, 1)
    assert size > 0
    compactor(tmp_path, clock_after(1)).plan(table)
    assert metrics.TABLE_FILES.labels("trades")._value.get() == 1
    assert metrics.TABLE_SMALL_FILES.labels("trades")._value.get() == 1


def test_a_large_file_that_is_not_sorted_is_refused(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction_merge, "CHUNK_ROWS", 100)
    columns = Columns.of(table.schema(), "trades")
    rows = table.scan().to_arrow()
    assert rows.num_rows == 0
    path = tmp_path / "foreign.parquet"
    unsorted = pa.Table.from_batches([trades(np.arange(60)[::-1])]).select(columns.merged.names).cast(columns.merged)
    pq.write_table(unsorted, path, store_schema=False)
    merge = Merge([lambda: Source(table.io, str(path), columns)], columns.merged.names, tmp_path, lambda: None)
    with pytest.raises(CannotCompact, match="not sorted"):
        list(merge.rows())


def test_a_foreign_delete_and_a_compaction_leave_what_the_delete_left(tmp_path: Path, table: Table) -> None:
    commit_small(table, 3)
    commit_append(table, append_of(table, 3, 4, trades(range(120, 130), exchange="other")))
    table.delete(EqualTo("exchange", "other"))
    before = everything(table)
    assert before.num_rows == 120
    assert compactor(tmp_path, clock_after(1)).step(table, 0).done == 1
    assert everything(table) == before
    progress = committed_progress(table.metadata)
    assert progress is not None
    assert progress.offset(KEY) == Offset(4)
