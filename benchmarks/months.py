"""A table of 20,000 commits beside a fresh one: commit, planning, metadata and files, alone and under 20,000 trades/s.

python -m benchmarks.months [--quick] [--commits 20000] [--folder DIR]      (DIR: its `aged` is gone on with, and kept)

History is made by the writer's own staging, ledger and commit, and by the real upkeep, in turns, on a clock that runs
5 s a commit: 720 commits an hour, a look every 30 s, so hours and days close and are compacted as they would. Then it
and a fresh table live through one hour in turns, commit by commit, so that what else the machine does meets both, and
are measured at the same points of it (small files gather until an hour is over, in a fresh table too). At last each
takes 20,000 trades/s from a `TableWriter` that commits every second, with upkeep in a process beside it. Results of
part of the way are written too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.report import report
from k2ray.clock import ManualClock, SystemClock
from k2ray.lake.catalog import ensure_table, load_table, open_catalog
from k2ray.lake.commit import Append, commit_append
from k2ray.lake.durable import local_path
from k2ray.lake.ledger_file import dump_ledger, load_ledger
from k2ray.lake.progress import Offset, committed_progress
from k2ray.lake.stage import Origin, concat_rows, ledger_location, stage
from k2ray.lake.upkeep import TableUpkeep
from k2ray.lake.writer import TableWriter
from k2ray.layout import DataDir
from k2ray.query.files import Snapshots
from k2ray.query.heads import Heads
from k2ray.query.plan import prune
from k2ray.query.request import Selection
from k2ray.settings import Settings, load_settings
from tests.support.lake import QUOTES_TOPIC, TRADES_TOPIC, MemoryLetters, MemoryLog, MemoryReader, trades

HOUR_COMMITS = 720
COMMIT_S = 5.0
LOOK_EVERY = 6
SYMBOLS = [f"SYM{number}USDT" for number in range(20)]
PER_SYMBOL = 2
KEY = (TRADES_TOPIC, 0)
MILESTONES = (5_040, 10_080)
POINTS = (100, 360, HOUR_COMMITS)
"""Commits into the hour at which both tables are measured: just after the compaction, the middle, just before."""
WINDOW = 50
BEGIN_US = 1_767_225_600_000_000
"""2026-01-01 00:00 UTC, the top of an hour."""

LIVE_RATE = 20_000
LIVE_RECORD = 500


Measured = list[dict[str, Any]]


def settings_of(folder: Path, interval_s: float = 5) -> Settings:
    lake = {"commit": {"interval_s": interval_s}}
    return load_settings(arguments={"data_dir": str(folder), "lake": lake}, environ={})


class History:
    """A table and the commits that made it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock(now_us=BEGIN_US)
        self.settings = settings_of(folder)
        self.catalog = open_catalog(self.settings, DataDir(folder))
        self.table = ensure_table(self.catalog, self.settings, "trades", {TRADES_TOPIC: 1})
        self.upkeep = TableUpkeep(self.settings, DataDir(folder), "trades", clock=self.clock)
        progress = committed_progress(self.table.metadata)
        assert progress is not None
        self.ledger = load_ledger(self.table.io, progress, "trades")
        self.commits = progress.offset(KEY).next
        self.clock.advance(self.commits * COMMIT_S)
        self.commit_s: list[float] = []
        self.cpu_s: list[float] = []
        self.upkeep_s: list[float] = []

    def commit(self) -> None:
        """Stage and commit 5 s of trades as a writer would, and let the clock run."""
        at = self.commits
        ids = np.repeat(np.arange(at * PER_SYMBOL, (at + 1) * PER_SYMBOL), len(SYMBOLS))
        step_us = int(COMMIT_S * 1_000_000) // PER_SYMBOL
        batch = trades(ids, SYMBOLS * PER_SYMBOL, start_us=BEGIN_US, step_us=step_us)
        self.ledger.decide(KEY, batch)
        files = stage(self.table, "trades", concat_rows([batch]), Origin("id-0", 0, at, at + 1))
        end = {KEY: Offset(at + 1)}
        location = ledger_location(self.table)
        with self.table.io.new_output(location).create() as stream:
            stream.write(dump_ledger(self.ledger, end, {TRADES_TOPIC: "id-0"}))
        topics = {TRADES_TOPIC: "id-0"}
        append = Append(tuple(files), {KEY: Offset(at)}, end, location, "cluster-1", topics)
        start, cpu = time.perf_counter(), time.process_time()
        commit_append(self.table, append)
        self.commit_s.append(time.perf_counter() - start)
        self.cpu_s.append(time.process_time() - cpu)
        self.commits += 1
        self.clock.advance(COMMIT_S)
        if self.commits % LOOK_EVERY == 0:
            start = time.perf_counter()
            self.upkeep.step()
            self.upkeep_s.append(time.perf_counter() - start)

    def measure(self) -> dict[str, Any]:
        """Return what a reader and the next commit meet."""
        catalog = open_catalog(self.settings, DataDir(self.folder))
        table = load_table(catalog, self.settings, "trades")
        assert table is not None
        head = table.current_snapshot()
        assert head is not None
        catalog.close()
        metadata = Path(str(local_path(table.metadata_location)))
        return {
            "commit_ms": round(1000 * mean(self.commit_s[-WINDOW:]), 1),
            "commit_p50_ms": round(1000 * median(self.commit_s[-WINDOW:]), 1),
            "commit_cpu_ms": round(1000 * mean(self.cpu_s[-WINDOW:]), 1),
            **planning(self.settings, self.clock.now_us()),
            "metadata_kb": metadata.stat().st_size // 1024,
            "snapshots": len(table.metadata.snapshots),
            "files": int((head.summary or {}).get("total-data-files") or 0),
            "manifests": len(head.manifests(table.io)),
            "files_on_disk": sum(1 for path in (self.folder / "warehouse").rglob("*") if path.is_file()),
            "upkeep_ms": round(1000 * mean(self.upkeep_s[-HOUR_COMMITS // LOOK_EVERY :]), 1),
            "upkeep_max_ms": round(1000 * max(self.upkeep_s[-HOUR_COMMITS // LOOK_EVERY :]), 1),
        }

    def close(self) -> None:
        self.upkeep.close()
        self.catalog.close()


def planning(settings: Settings, now_us: int) -> dict[str, float]:
    """Return how long a replica takes to plan one hour of one symbol: at its first question, and once it is warm."""
    catalog = open_catalog(settings, DataDir(settings.data_dir))
    selection = Selection("trades", "binance", ("SYM1USDT",), now_us - 3_600_000_000, now_us, "")
    cold, warm = [], []
    for _ in range(5):
        snapshots = Snapshots(Heads(catalog, settings, SystemClock()))
        for seconds in (cold, warm):
            start = time.perf_counter()
            prune(snapshots.files(snapshots.pin("trades"), selection), selection)
            seconds.append(time.perf_counter() - start)
    catalog.close()
    return {"plan_cold_ms": round(1000 * median(cold), 1), "plan_warm_ms": round(1000 * median(warm), 2)}


def live(history: History, seconds: float) -> dict[str, float]:
    """Write 20,000 trades/s with a commit a second, upkeep in a process beside it; return what a commit took."""
    settings = settings_of(history.folder, interval_s=1)
    log = MemoryLog({TRADES_TOPIC: 1, QUOTES_TOPIC: 1})
    log.partitions[KEY] = [(b"", [])] * history.commits
    log.low[KEY] = history.commits
    layout = DataDir(history.folder)
    writer = TableWriter(settings, layout, "trades", "", reader=MemoryReader(log), letters=MemoryLetters)
    arguments = [sys.executable, "-m", "benchmarks.months", "--upkeep", settings.to_json(), str(seconds)]
    beside = subprocess.Popen(arguments, cwd=Path(__file__).parents[1])
    first = history.commits * PER_SYMBOL
    per_symbol = LIVE_RECORD // len(SYMBOLS)
    commit_s: list[float] = []
    planned: list[float] = []
    sent = commits = 0
    start = time.monotonic()
    catalog = open_catalog(settings, DataDir(history.folder))
    snapshots = Snapshots(Heads(catalog, settings, SystemClock()))
    while (passed := time.monotonic() - start) < seconds:
        while sent * LIVE_RECORD < passed * LIVE_RATE:
            ids = np.repeat(np.arange(first, first + per_symbol), len(SYMBOLS))
            first += per_symbol
            now_us = time.time_ns() // 1000
            batch = trades(ids, SYMBOLS * per_symbol, start_us=now_us - int(ids[0]), step_us=1)
            log.publish(KEY, batch)
            sent += 1
        writer.step(0.01)
        status = writer.status()
        if status.commits > commits:
            commits = status.commits
            commit_s.append(status.commit_s or 0.0)
            now_us = time.time_ns() // 1000
            selection = Selection("trades", "binance", ("SYM1USDT",), now_us - 3_600_000_000, now_us, "")
            begun = time.perf_counter()
            prune(snapshots.files(snapshots.pin("trades"), selection), selection)
            planned.append(time.perf_counter() - begun)
    assert writer.drain(60)
    writer.close()
    catalog.close()
    beside.wait(60)
    stored = load_table(open_catalog(settings, DataDir(history.folder)), settings, "trades")
    assert stored is not None
    progress = committed_progress(stored.metadata)
    assert progress is not None
    assert progress.offset(KEY).next == len(log.partitions[KEY])
    return {
        "live_rows_s": round(sent * LIVE_RECORD / seconds),
        "live_commit_ms": round(1000 * mean(commit_s), 1),
        "live_commit_p50_ms": round(1000 * median(commit_s), 1),
        "live_plan_ms": round(1000 * median(planned), 1),
    }


def look_after(settings: Settings, seconds: float) -> None:
    """Upkeep in a process of its own, on the machine's clock, far more often than in production."""
    upkeep = TableUpkeep(settings, DataDir(settings.data_dir), "trades")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        upkeep.step()
        time.sleep(2)
    upkeep.close()


def one_hour(*tables: History) -> list[Measured]:
    """Let tables live through an hour in turns; return what was measured of each at its points."""
    found: list[Measured] = [[] for _ in tables]
    for number in range(1, HOUR_COMMITS + 1):
        for table in tables:
            table.commit()
        if number in POINTS:
            for table, measured in zip(tables, found, strict=True):
                measured.append(table.measure())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--commits", type=int, default=20_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--upkeep", nargs=2)
    chosen = parser.parse_args()
    if chosen.upkeep:
        look_after(Settings.from_json(chosen.upkeep[0]), float(chosen.upkeep[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        aged = History(folder / "aged")
        began = time.monotonic()
        ends = [commits for commits in MILESTONES if aged.commits < commits < chosen.commits] + [chosen.commits]
        for end in [2 * HOUR_COMMITS] if chosen.quick else ends:
            while aged.commits < end or aged.commits % HOUR_COMMITS:
                aged.commit()
                if aged.commits % HOUR_COMMITS == 0:
                    print(f"{aged.commits} commits, {time.monotonic() - began:.0f} s", aged.measure(), flush=True)
            fresh = History(Path(temporary) / f"fresh-{end}")
            new, old = one_hour(fresh, aged)
            lives = None
            if end == ends[-1] or chosen.quick:
                seconds = 10 if chosen.quick else 60
                lives = live(fresh, seconds), live(aged, seconds)
            write(new, old, aged.commits, lives)
            fresh.close()
        aged.close()


def write(new: Measured, old: Measured, commits: int, lives: tuple[dict[str, float], dict[str, float]] | None) -> None:
    """Report what two tables measured at the same points of an hour, and under load."""
    pairs = list(zip((f"commit {point}" for point in POINTS), new, old, strict=True))
    pairs += [("live", *lives)] if lives else []
    rows = [
        {"at": at, "what": what, "fresh": one[what], "aged": other[what], "ratio": ratio(other[what], one[what])}
        for at, one, other in pairs
        for what in one
    ]
    report(
        "months",
        rows,
        f"A fresh table and one of {commits:,} commits (one every 5 s, compacted every hour), at the same commits into "
        f"an hour, the last {WINDOW} commits each; live: 20,000 trades/s, a commit a second, upkeep beside it. Aim: no "
        "ratio over 2.5 for commit, plan, metadata and files.",
    )


def ratio(old: float, new: float) -> float:
    return round(old / new, 2) if new else 0.0


if __name__ == "__main__":
    main()
