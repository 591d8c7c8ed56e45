"""Rows per CPU second of the sequence ledger's decisions, in the usual case and in unusual ones, and its file's cost.

python benchmarks/ledger.py [--quick]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.report import report
from k2ray.ledger import Ledger, LedgerParams, LedgerPosition, decode_ledger, encode_ledger
from k2ray.model import TIMESTAMP

PARTITION = ("market.crypto.trades.binance", 0)
START_US = 1_790_000_000_000_000
Batches = list[pa.RecordBatch | pa.Table]


def batch_of(symbols: np.ndarray, codes: np.ndarray, ids: np.ndarray, times: np.ndarray) -> pa.RecordBatch:
    """Return the columns that the ledger looks at, as the wire has them."""
    rows = len(ids)
    once = pa.array(np.zeros(rows, dtype=np.int32))
    return pa.record_batch(
        {
            "exchange": pa.DictionaryArray.from_arrays(once, pa.array(["binance"])),
            "symbol": pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(symbols)),
            "sequence_space": pa.DictionaryArray.from_arrays(once, pa.array([""])),
            "source_sequence": pa.array(ids),
            "sequence_from": pa.array(ids - 1),
            "timestamp": pa.array(times).cast(TIMESTAMP),
        }
    )


def live(rows: int, symbols: int, batches: int, start: int = 1_000_000) -> Batches:
    """Return batches of which each symbol's ids step by one and times jitter by half a second."""
    rng = np.random.default_rng(rows + symbols)
    names = np.array([f"S{number:03d}USDT" for number in range(symbols)])
    newest = np.full(symbols, start)
    found: Batches = []
    for number in range(batches):
        codes = rng.integers(0, symbols, rows)
        ids = np.empty(rows, dtype=np.int64)
        for symbol in range(symbols):
            of_symbol = np.flatnonzero(codes == symbol)
            ids[of_symbol] = newest[symbol] + 1 + np.arange(len(of_symbol))
            newest[symbol] += len(of_symbol)
        times = START_US + number * 1_000_000 + rng.integers(0, 500_000, rows)
        found.append(batch_of(names, codes, ids, times))
    return found


def twice(batches: Batches) -> Batches:
    """Return each batch and, after it, the same from a second feed."""
    return [again for batch in batches for again in (batch, batch)]


def with_gaps(batches: Batches) -> Batches:
    """Return batches that lost every 100th row."""
    return [batch.take(pa.array(np.flatnonzero(np.arange(batch.num_rows) % 100))) for batch in batches]


def in_chunks(batches: Batches, chunks: int) -> Batches:
    """Return tables of so many batches; their dictionaries differ in order."""
    tables: Batches = []
    for at in range(0, len(batches), chunks):
        parts = []
        for number, batch in enumerate(batches[at : at + chunks]):
            symbols = batch.column("symbol")
            if number % 2:
                size = len(symbols.dictionary)
                codes = pa.array((size - 1 - symbols.indices.to_numpy()).astype(np.int32))
                symbols = pa.DictionaryArray.from_arrays(codes, symbols.dictionary[::-1])
            parts.append(batch.set_column(1, "symbol", symbols))
        tables.append(pa.Table.from_batches(parts))
    return tables


def cpu(work: Callable[[], Any]) -> float:
    """Return the CPU seconds that `work` takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(name: str, batches: Batches, repeats: int) -> dict[str, Any]:
    """Decide the first half of the batches to warm up, measure the rest; the best of several."""
    half = len(batches) // 2
    rates = []
    for _ in range(repeats):
        ledger = Ledger(LedgerParams())
        for batch in batches[:half]:
            ledger.decide(PARTITION, batch)
        rows = sum(batch.num_rows for batch in batches[half:])

        def rest(ledger: Ledger = ledger) -> None:
            for batch in batches[half:]:
                ledger.decide(PARTITION, batch)

        rates.append(rows / cpu(rest))
    data = encode_ledger(ledger, {PARTITION: LedgerPosition("id", 1)})
    return {
        "case": name,
        "rows a batch": batches[0].num_rows,
        "rows/CPU s": round(max(rates)),
        "file bytes": len(data),
        "encode ms": round(1_000 * cpu(lambda: [encode_ledger(ledger, {}) for _ in range(5)]) / 5, 2),
        "decode ms": round(1_000 * cpu(lambda: [decode_ledger(data) for _ in range(5)]) / 5, 2),
    }


def main() -> None:
    quick = "--quick" in sys.argv
    total, repeats = (200_000, 1) if quick else (2_000_000, 3)
    rows = []
    for size in (500, 10_000, 50_000):
        for symbols in (1, 3, 50, 200):
            batches = live(size, symbols, max(8, total // size))
            rows.append(measure(f"live, {symbols} symbols", batches, repeats))
    few = live(500, 3, total // 500)
    rows.append(measure("tables of 40 batches, 3 symbols", in_chunks(few, 40), repeats))
    rows.append(measure("two feeds, 3 symbols", twice(few), repeats))
    rows.append(measure("every 100th lost, 3 symbols", with_gaps(few[: len(few) // 10 + 2]), repeats))
    report("ledger", rows, "aims: 3,000,000 rows/CPU s at 500 rows a batch, 10,000,000 from 10,000 on; best of 3, warm")


if __name__ == "__main__":
    main()
