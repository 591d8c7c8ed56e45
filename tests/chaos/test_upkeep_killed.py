"""Upkeep's process is killed -9 at every step, or stopped and overtaken, with a writer beside it: ids are compared."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyiceberg.table import Table

from k2ray.errors import TryAgain
from k2ray.lake.durable import local_path
from tests.support.compaction import HOUR_S, clock_after, commit_small, data_files, upkeep_settings
from tests.support.lake import NOON_US, open_table, stored_ids
from tests.support.upkeep_process import start_upkeep

# Three processes that start Python, pyarrow and DuckDB, beside a writer.
pytestmark = pytest.mark.timeout(400)

ROWS = 40

POINTS = {
    "compaction_planned": False,
    "mid_parquet": False,
    "compaction_written": False,
    "compaction_verified": False,
    "compaction_commit": True,
    "compaction_done": False,
    "expiry": False,
    "expired": False,
    "mid_delete": False,
    "mid_sweep": False,
}
"""Where it dies; whether in `make test`."""


class BusyWriter:
    """Commits small batches of the running hour from a thread until told to stop."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.commits = 0
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                commit_small(self._table, 1, ROWS, at_us=NOON_US + 3 * HOUR_S * 1_000_000)
            except (TryAgain, FileNotFoundError):
                self._table.refresh()  # only two snapshots are kept here: the one it began on may be gone
                continue
            self.commits += 1
            # In production it commits every 5 s; one that always commits would win every race.
            time.sleep(10 * (time.monotonic() - began_s))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[BusyWriter]:
    table = open_table(tmp_path)
    commit_small(table, 5, ROWS)
    commit_small(table, 5, ROWS, at_us=NOON_US + HOUR_S * 1_000_000)
    writer = BusyWriter(open_table(tmp_path))
    yield writer
    writer.stop()


def finished(process: subprocess.Popen[bytes]) -> int:
    _, errors = process.communicate(timeout=300)
    assert process.returncode in {0, -signal.SIGKILL}, errors.decode()[-2000:]
    return process.returncode


def marked(point: str) -> object:
    return pytest.param(point, marks=pytest.mark.chaos if POINTS[point] else pytest.mark.chaos_full)


@pytest.mark.parametrize("point", [marked(point) for point in POINTS])
def test_upkeep_killed_at_any_step_loses_and_doubles_nothing(point: str, tmp_path: Path, writer: BusyWriter) -> None:
    settings, now_us = upkeep_settings(tmp_path), clock_after(3).now_us()
    assert finished(start_upkeep(settings, now_us, point)) == -signal.SIGKILL
    assert finished(start_upkeep(settings, now_us)) == 0, "its successor goes on"
    writer.stop()
    table = open_table(tmp_path)
    assert stored_ids(table) == list(range((10 + writer.commits) * ROWS))
    assert sum("k2ray-compacted-" in path for path in data_files(table)) == 2
    for snapshot in table.metadata.snapshots:
        table.scan(snapshot_id=snapshot.snapshot_id).to_arrow()


@pytest.mark.chaos_full
@pytest.mark.parametrize("point", ["compaction_verified", "compaction_commit", "expiry", "mid_delete"])
def test_upkeep_that_is_stopped_and_overtaken_harms_nothing_when_it_wakes(
    point: str, tmp_path: Path, writer: BusyWriter
) -> None:
    """Make before break, or a laptop's lid: the old one goes on where it was, in a table that its successor changed."""
    settings, now_us = upkeep_settings(tmp_path), clock_after(3).now_us()
    sleeper = start_upkeep(settings, now_us, point, how="STOP", looks=1)
    _, status = os.waitpid(sleeper.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert finished(start_upkeep(settings, now_us)) == 0
    os.kill(sleeper.pid, signal.SIGCONT)
    while not writer.commits:
        time.sleep(0.05)
    assert finished(sleeper) == 0
    writer.stop()
    table = open_table(tmp_path)
    assert stored_ids(table) == list(range((10 + writer.commits) * ROWS))
    for path in data_files(table):
        assert Path(str(local_path(path))).exists()
    assert finished(start_upkeep(settings, now_us)) == 0
    assert stored_ids(table) == list(range((10 + writer.commits) * ROWS))
