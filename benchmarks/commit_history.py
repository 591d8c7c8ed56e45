"""Commit time against history: 1 to 2,000 commits with upkeep beside them, and what a fresh table's commit takes.

python benchmarks/commit_history.py [--quick]

Each commit stages one file of 500 rows. Upkeep looks at the table after every sixth commit (30 s at 5 s commits), with
a clock that runs a minute a commit, so that hourly tags gather too; its time is another process's and listed apart.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.report import report
from k2ray.clock import ManualClock
from k2ray.lake.commit import commit_append
from k2ray.lake.durable import local_path
from k2ray.lake.upkeep import TableUpkeep
from k2ray.layout import DataDir
from k2ray.settings import load_settings
from tests.support.lake import append_of, open_table, trades

ROWS = 500
WINDOW = 50
SYMBOLS = [f"SYM{number}USDT" for number in range(20)]


def run(folder: Path, commits: int) -> list[dict[str, Any]]:
    table = open_table(folder)
    clock = ManualClock(now_us=time.time_ns() // 1000)
    # Compaction has a benchmark of its own (`months.py`); here every row is of a day that is long over.
    settings = load_settings(arguments={"data_dir": str(folder), "lake": {"upkeep": {"compact": False}}}, environ={})
    upkeep = TableUpkeep(settings, DataDir(folder), "trades", clock=clock)
    names = [SYMBOLS[row % len(SYMBOLS)] for row in range(ROWS)]
    seconds: list[float] = []
    cpu: list[float] = []
    upkeep_s: list[float] = []
    rows = []
    for number in range(commits):
        batch = trades(np.arange(number * ROWS, (number + 1) * ROWS), names)
        append = append_of(table, number, number + 1, batch)
        start, start_cpu = time.perf_counter(), time.process_time()
        commit_append(table, append)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        clock.advance(60)
        if number % 6 == 5:
            start = time.perf_counter()
            upkeep.step()
            upkeep_s.append(time.perf_counter() - start)
        if number + 1 in {WINDOW, 100, 250, 500, 1000, 1500, 2000}:
            head = table.current_snapshot()
            assert head is not None
            metadata = Path(str(local_path(table.metadata_location)))
            files = list(metadata.parent.iterdir())
            rows.append(
                {
                    "commits": number + 1,
                    "mean_ms": round(1000 * mean(seconds[-WINDOW:]), 1),
                    "p50_ms": round(1000 * median(seconds[-WINDOW:]), 1),
                    "max_ms": round(1000 * max(seconds[-WINDOW:]), 1),
                    "cpu_ms": round(1000 * mean(cpu[-WINDOW:]), 1),
                    "ratio_mean": round(mean(seconds[-WINDOW:]) / mean(seconds[:WINDOW]), 2),
                    "ratio_cpu": round(mean(cpu[-WINDOW:]) / mean(cpu[:WINDOW]), 2),
                    "snapshots": len(table.metadata.snapshots),
                    "tags": len(table.metadata.refs) - 1,
                    "manifests": len(head.manifests(table.io)),
                    "metadata_kb": metadata.stat().st_size // 1024,
                    "metadata_files": len(files),
                    "upkeep_ms": round(1000 * mean(upkeep_s[-8:]), 1),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    commits = 250 if "--quick" in sys.argv else 2000
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder), commits)
    report(
        "commit_history", rows, f"Windows of the last {WINDOW} commits; ratio to the first {WINDOW}. Aim: 2.5 at most."
    )


if __name__ == "__main__":
    main()
