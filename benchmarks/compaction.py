"""One job of compaction, 7.2 million trades in about 120 MB: CPU seconds and memory, by the size of the small files.

python -m benchmarks.compaction [--quick]

An hour at 20,000 trades/s is ten such jobs, one after the other. Each shape runs in a process of its own, so that its
peak of resident memory is its alone; the base is the same process's before it begins, with everything imported.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.report import report
from k2ray.clock import ManualClock
from k2ray.lake.commit import commit_append
from k2ray.lake.compaction import Compactor
from k2ray.lake.live_files import LiveFiles
from k2ray.lake.stage import Origin, stage
from k2ray.layout import DataDir
from tests.support.lake import NOON_US, append_of, lake_settings, open_table, trades

SYMBOLS = [f"SYM{number}USDT" for number in range(50)]
HOUR_US = 3_600_000_000


def make(folder: Path, files: int, rows: int) -> None:
    """Make a table whose one hour lies in `files` files of `rows` rows."""
    table = open_table(folder)
    names = [SYMBOLS[row % len(SYMBOLS)] for row in range(rows)]
    staged = []
    for number in range(files):
        ids = np.arange(number * rows, (number + 1) * rows)
        batch = trades(ids, names, step_us=HOUR_US // (files * rows))
        staged += stage(table, "trades", pa.Table.from_batches([batch]), Origin("id-0", 0, 0, 1))
    commit_append(table, dataclasses.replace(append_of(table, 0, 1), files=tuple(staged)))


def run(folder: Path) -> dict[str, float]:
    """Compact it, and say what that took."""
    table = open_table(folder)
    upkeep = lake_settings(folder).lake.upkeep
    clock = ManualClock(now_us=NOON_US + 2 * HOUR_US)
    compactor = Compactor("trades", upkeep, clock, DataDir(folder).scratch, LiveFiles())
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    done = compactor.step(table, 0)
    assert done.done == 1
    assert not done.left
    return {
        "rows": done.rows,
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "cpu_s_per_million": round((time.process_time() - cpu) / done.rows * 1e6, 2),
        "rss_base_mb": base // 1024,
        "rss_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    if "--run" in sys.argv:
        print("\n" + json.dumps(run(Path(sys.argv[-1]))))
        return
    shapes = [(720, 1_000), (8, 100_000)] if "--quick" in sys.argv else [(720, 10_000), (72, 100_000), (14, 500_000)]
    rows: list[dict[str, Any]] = []
    for files, size in shapes:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), files, size)
            command = [sys.executable, "-m", "benchmarks.compaction", "--run", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"files": files, "rows_a_file": size, **json.loads(done.stdout.strip().splitlines()[-1])})
    report("compaction", rows, "Read, merged, written, read back, compared and committed.")


if __name__ == "__main__":
    main()
