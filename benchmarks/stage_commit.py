"""Stage and commit: decoded rows to a landed snapshot, step by step, in CPU seconds a million rows; one thread.

python benchmarks/stage_commit.py [--quick]

Batches of 500,000 rows of 50 symbols that came as 500-row records, as the writer gathers them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from drain import SYMBOLS, with_market_prices

from benchmarks.report import report
from k2ray.lake.commit import commit_append
from k2ray.lake.stage import Origin, concat_rows, sort_rows, stage
from k2ray.ledger import Ledger, encode_ledger
from k2ray.wire.codec import decode, encode_rows
from tests.support.lake import append_of, open_table, trades

T = TypeVar("T")
ROWS_PER_RECORD = 500


def records(rows: int) -> list[tuple[bytes, Any]]:
    rng = np.random.default_rng(3)
    ids = dict.fromkeys(SYMBOLS, 1)
    made = []
    for _ in range(rows // ROWS_PER_RECORD):
        at = rng.integers(0, len(SYMBOLS), ROWS_PER_RECORD)
        numbers = np.empty(ROWS_PER_RECORD, dtype=np.int64)
        for index, name in enumerate(SYMBOLS):
            mask = at == index
            count = int(mask.sum())
            numbers[mask] = ids[name] + np.arange(count)
            ids[name] += count
        batch = trades(numbers, [SYMBOLS[index] for index in at], step_us=50)
        made.append(encode_rows("trades", with_market_prices(batch, rng)))
    return made


def main() -> None:
    rows, rounds = (200_000, 3) if "--quick" in sys.argv else (500_000, 5)
    values = records(rows)
    times: dict[str, list[tuple[float, float]]] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        cpu, wall = time.process_time(), time.perf_counter()
        found = work()
        times.setdefault(name, []).append((time.process_time() - cpu, time.perf_counter() - wall))
        return found

    with tempfile.TemporaryDirectory() as folder:
        table = open_table(Path(folder))
        for number in range(rounds):
            ledger = Ledger()
            batches = timed("decode", lambda: [decode(*value) for value in values])
            joined = timed("join records", lambda pieces=batches: pa.concat_batches(pieces))
            timed("ledger decides", lambda one=joined, book=ledger: book.decide(("t", 0), one))
            gathered = concat_rows([joined])
            timed("  of stage: sort and take", lambda one=gathered: sort_rows(one))
            files = timed("stage", lambda one=gathered: stage(table, "trades", one, Origin("id-0", 0, 0, 1)))
            timed("ledger file", lambda book=ledger: encode_ledger(book, {}))
            append = append_of(table, number, number + 1)
            timed("commit", lambda one=append: commit_append(table, one))
            size = files[0].file_size_in_bytes
    lines: list[dict[str, Any]] = [
        {
            "step": name,
            "cpu_s_per_million": round(median(cpu for cpu, _ in found) / rows * 1e6, 3),
            "wall_s_per_million": round(median(wall for _, wall in found) / rows * 1e6, 3),
            "rows_per_cpu_s": round(rows / max(median(cpu for cpu, _ in found), 1e-9)),
        }
        for name, found in times.items()
    ]
    total = sum(line["cpu_s_per_million"] for line in lines if not line["step"].startswith(" "))
    lines.append(
        {
            "step": "all",
            "cpu_s_per_million": round(total, 3),
            "wall_s_per_million": round(sum(line["wall_s_per_million"] for line in lines if line["step"][0] != " "), 3),
            "rows_per_cpu_s": round(1e6 / total),
        }
    )
    report(
        "stage_commit", lines, f"{rows:,} rows a batch, {size / rows:.1f} bytes a row in Parquet; medians of {rounds}."
    )


if __name__ == "__main__":
    main()
