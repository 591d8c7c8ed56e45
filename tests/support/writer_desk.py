"""A log in memory, a real table in SQLite, and writers that come and go between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from k2ray.clock import ManualClock
from k2ray.lake.commit import no_faults
from k2ray.lake.durable import local_path
from k2ray.lake.progress import committed_progress
from k2ray.lake.writer import TableWriter
from k2ray.layout import DataDir
from k2ray.settings import Settings
from tests.support.lake import (
    NOON_US,
    QUOTES_TOPIC,
    TRADES_TOPIC,
    MemoryLetters,
    MemoryLog,
    MemoryReader,
    lake_settings,
    open_table,
    stored_ids,
)

FIRST, SECOND = (TRADES_TOPIC, 0), (TRADES_TOPIC, 1)
COMMIT_POINTS = ("before_stage", "mid_parquet", "staged", "head_read", "inside_commit", "after_commit")


class Desk:
    """A log, a table's folder, and writers that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = MemoryLog({TRADES_TOPIC: 2, QUOTES_TOPIC: 2})
        self.letters = MemoryLetters()
        self.clock = ManualClock(now_us=NOON_US)
        self._writers: list[TableWriter] = []

    def writer(
        self, faults: Any = no_faults, settings: Settings | None = None, table: str = "trades", **more: Any
    ) -> TableWriter:
        writer = TableWriter(
            settings or lake_settings(self.folder),
            DataDir(self.folder),
            table,
            "",
            clock=more.pop("clock", None),
            reader=MemoryReader(self.log, **more),
            letters=lambda: self.letters,
            faults=faults,
        )
        self._writers.append(writer)
        return writer

    def ids(self, table: str = "trades") -> list[int]:
        return stored_ids(open_table(self.folder, table_name=table))

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def ledger_path(desk: Desk) -> Path:
    progress = committed_progress(open_table(desk.folder).metadata)
    assert progress is not None
    assert progress.ledger is not None
    return Path(str(local_path(progress.ledger)))


def until(writer: TableWriter, field: str, value: Any, steps: int = 2_000) -> None:
    for _ in range(steps):
        if getattr(writer.status(), field) == value:
            return
        writer.step(0.005)
    raise AssertionError(f"{field} never became {value!r}: {writer.status()}")
