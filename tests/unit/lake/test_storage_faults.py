"""The disk is full at every single write of a commit, and the catalog is locked for longer than anybody waits."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from k2ray.errors import CatalogUnavailable, DiskFull, TryAgain
from k2ray.lake import catalog as catalog_module
from k2ray.lake import durable
from k2ray.lake.upkeep import TableUpkeep
from k2ray.layout import DataDir
from tests.support.compaction import clock_after, commit_small, data_files, upkeep_of
from tests.support.lake import lake_settings, open_table, stored_ids, trades
from tests.support.writer_desk import FIRST, Desk


class Disk:
    """Lets a number of writes through, then is full until `room` is set; the write in between is cut short."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
        self.left = writes
        self.room = False
        self.refused = 0
        write = durable._DurableStream.write

        def limited(stream: Any, data: Any) -> int:
            if self.room or self.left > 0:
                self.left -= 1
                return write(stream, data)
            self.refused += 1
            write(stream, memoryview(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", stream._path)

        monkeypatch.setattr(durable._DurableStream, "write", limited)


@pytest.mark.parametrize("writes", [0, 1, 5, 20, 40, 41, 42, 43, 44, 45, 46, 50, 60])
def test_a_disk_that_is_full_at_any_write_of_a_commit_loses_nothing(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path)
    writer = desk.writer()
    desk.log.publish(FIRST, trades(range(40)))
    assert writer.drain()
    files = len(list(tmp_path.rglob("*.parquet"))), len(list(tmp_path.rglob("*.arrow")))
    with monkeypatch.context() as patch:
        disk = Disk(patch, writes)
        desk.log.publish(FIRST, trades(range(40, 80)))
        told = ""
        for _ in range(6):
            try:
                if writer.drain(5):
                    break
            except DiskFull as error:
                told = str(error)
        if disk.refused:
            assert "No space left on device" in told
            assert "make room" in told
            assert "DiskFull" in str(writer.status().trouble)
            after = len(list(tmp_path.rglob("*.parquet"))), len(list(tmp_path.rglob("*.arrow")))
            assert after[0] <= files[0] + 1, "each retry left a file behind"
            assert after[1] <= files[1] + 1
        disk.room = True
        assert writer.drain()
    assert writer.status().trouble is None
    assert desk.ids() == list(range(80))
    desk.close()


@pytest.mark.parametrize("writes", [0, 3, 30, 60, 100])
def test_a_disk_that_is_full_during_a_compaction_stops_neither_expiry_nor_writer(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = open_table(tmp_path)
    commit_small(table, 6)
    upkeep = upkeep_of(tmp_path, clock_after(1))
    with monkeypatch.context() as patch:
        disk = Disk(patch, writes)
        told: list[TryAgain] = []
        try:
            upkeep.step()
        except TryAgain as error:
            told.append(error)
        assert bool(told) == bool(disk.refused)
        assert all(isinstance(error, DiskFull) and "make room" in str(error) for error in told)
        assert told or len(data_files(table)) == 1
    assert stored_ids(table) == list(range(240))
    upkeep.step()
    assert len(data_files(table)) == 1
    assert stored_ids(table) == list(range(240))
    upkeep.close()


def test_a_catalog_locked_for_longer_than_anybody_waits_costs_freshness_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tool holds the SQLite file: the writer keeps its batch, says who is to be ended, and goes on by itself."""
    monkeypatch.setattr(catalog_module, "BUSY_TIMEOUT_S", 0.05)
    desk = Desk(tmp_path)
    writer = desk.writer()
    upkeep = TableUpkeep(lake_settings(tmp_path), DataDir(tmp_path), "trades")
    desk.log.publish(FIRST, trades(range(40)))
    assert writer.drain()
    desk.log.publish(FIRST, trades(range(40, 80)))
    other = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for _ in range(3):
        with pytest.raises(CatalogUnavailable, match="holds the SQLite catalog locked"):
            writer.drain(20)
    assert "locked" in str(writer.status().trouble)
    with pytest.raises(CatalogUnavailable, match="locked"):
        upkeep.step()
    desk.log.publish(FIRST, trades(range(80, 120)))
    assert desk.ids() == list(range(40)), "readers are not locked out"
    other.execute("ROLLBACK")
    other.close()
    assert writer.drain()
    upkeep.step()
    assert writer.status().trouble is None
    assert desk.ids() == list(range(120))
    upkeep.close()
    desk.close()
