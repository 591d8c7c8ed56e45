"""Tables with small files of closed hours, and upkeep that compacts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from k2ray.clock import ManualClock
from k2ray.lake.commit import commit_append
from k2ray.lake.compaction import Compactor
from k2ray.lake.live_files import LiveFiles
from k2ray.lake.progress import committed_progress
from k2ray.lake.upkeep import TableUpkeep
from k2ray.layout import DataDir
from k2ray.settings import Settings, load_settings
from tests.support.lake import NOON_US, TRADES_TOPIC, append_of, trades

HOUR_S = 3600
KEY = (TRADES_TOPIC, 0)


def upkeep_settings(folder: Path, **upkeep: Any) -> Settings:
    """Return settings under which an hour of three files is compacted as soon as it is over."""
    chosen = {"compact_min_files": 3, "compact_settle_s": 1, "snapshots_kept": 2, "expire_every": 1, **upkeep}
    return load_settings(arguments={"data_dir": str(folder), "lake": {"upkeep": chosen}}, environ={})


def clock_after(hours: float) -> ManualClock:
    """Return a clock that stands that long after noon of the test's day, and a minute."""
    return ManualClock(now_us=NOON_US + int(hours * HOUR_S * 1_000_000) + 60_000_000)


def commit_small(table: Table, count: int, rows: int = 40, *, at_us: int = NOON_US) -> None:
    """Commit files of `rows` trades of three symbols each, ids as the offsets go on, event times from `at_us` on."""
    progress = committed_progress(table.metadata)
    assert progress is not None
    first = progress.offset(KEY).next
    for number in range(first, first + count):
        ids = np.arange(number * rows, (number + 1) * rows)
        names = [("BTCUSDT", "ETHUSDT", "BNBUSDT")[row % 3] for row in range(rows)]
        batch = trades(ids, names, start_us=at_us - int(ids[0]) * 1_000 + (number - first) * 1_000_000)
        commit_append(table, append_of(table, number, number + 1, batch))


def compactor(folder: Path, clock: ManualClock, **more: Any) -> Compactor:
    """Return a compactor of `trades`."""
    chosen = upkeep_settings(folder, **more.pop("upkeep", {})).lake.upkeep
    return Compactor("trades", chosen, clock, DataDir(folder).scratch, LiveFiles(), **more)


def upkeep_of(folder: Path, clock: ManualClock, **more: Any) -> TableUpkeep:
    """Return the whole upkeep of `trades`."""
    chosen = upkeep_settings(folder, **more.pop("upkeep", {}))
    return TableUpkeep(chosen, DataDir(folder), "trades", clock=clock, **more)


def data_files(table: Table) -> list[str]:
    """Return the newest snapshot's data files."""
    table.refresh()
    return sorted(task.file.file_path for task in table.scan().plan_files())


def before_commits(monkeypatch: pytest.MonkeyPatch, catalog: Catalog, *actions: Callable[[], object]) -> list[int]:
    """Do something just before each of a catalog's next commits reaches it; returns a list that grows with each."""
    commit = catalog.commit_table
    left = iter(actions)
    calls: list[int] = []

    def interposed(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        for action in left:
            action()
            break
        return commit(*args, **kwargs)

    monkeypatch.setattr(catalog, "commit_table", interposed)
    return calls
