"""Batch <-> bytes: rows per CPU second of encode and decode at 20, 500 and 4,000 rows, by compression.

python benchmarks/codec.py [--quick]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.report import report
from k2ray.model import DECIMAL, REPEATED, STRING_MAP, TIMESTAMP, TRADES_WIRE
from k2ray.wire.codec import decode, encode_rows

START_ID = 3_000_000_000
START_US = 1_790_000_000_000_000
SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT")


def trade_batch(rows: int, start: int = 0) -> pa.RecordBatch:
    """Return trades as the Binance adapter makes them: walking prices, ids that step by one."""
    rng = np.random.default_rng(start + rows)
    ids = np.arange(START_ID + start, START_ID + start + rows)
    times = START_US + start * 250 + np.cumsum(rng.integers(0, 500, rows))
    prices = 6_000_000 + np.cumsum(rng.integers(-5, 6, rows))
    columns: dict[str, pa.Array] = {
        "exchange": _repeated("binance", rows),
        "symbol": pa.DictionaryArray.from_arrays(
            pa.array(rng.integers(0, len(SYMBOLS), rows), pa.int32()), pa.array(SYMBOLS)
        ),
        "asset_class": _repeated("crypto", rows),
        "trade_id": pa.array(ids).cast(pa.string()),
        "timestamp": pa.array(times, TIMESTAMP),
        "price": pa.array([Decimal(int(price)).scaleb(-2) for price in prices], DECIMAL),
        "quantity": pa.array([Decimal(int(q)).scaleb(-5) for q in rng.integers(1, 100_000, rows)], DECIMAL),
        "currency": _repeated("USDT", rows),
        "side": pa.DictionaryArray.from_arrays(
            pa.array(rng.integers(0, 2, rows), pa.int32()), pa.array(["BUY", "SELL"])
        ),
        "trade_conditions": pa.nulls(rows, pa.list_(pa.string())),
        "source_sequence": pa.array(ids),
        "sequence_space": _repeated("", rows),
        "ingestion_timestamp": pa.array(times + 150, TIMESTAMP),
        "origin": _repeated("live", rows),
        "vendor_data": pa.nulls(rows, STRING_MAP),
        "sequence_from": pa.array(ids - 1),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in TRADES_WIRE.names], schema=TRADES_WIRE)


def _repeated(text: str, rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text])).cast(REPEATED)


def cpu_seconds(work: Callable[[], object], seconds: float) -> float:
    """Return the CPU time of one call, over some `seconds`."""
    work()
    calls = 0
    began, until = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < until:
        work()
        calls += 1
    return (time.process_time() - began) / calls


def main() -> None:
    seconds = 0.1 if "--quick" in sys.argv else 1.0
    rows: list[dict[str, Any]] = []
    for size in (20, 500, 4000):
        batch = trade_batch(size)
        for compression in (None, "lz4", "zstd"):
            value, headers = encode_rows("trades", batch, compression)  # type: ignore[arg-type]
            encode_s = cpu_seconds(lambda b=batch, c=compression: encode_rows("trades", b, c), seconds)  # type: ignore[misc]
            decode_s = cpu_seconds(lambda v=value, h=headers: decode(v, h), seconds)  # type: ignore[misc]
            rows.append(
                {
                    "rows": size,
                    "ipc compression": compression or "none",
                    "bytes a row": round(len(value) / size, 1),
                    "encode rows/cpu s": round(size / encode_s),
                    "decode rows/cpu s": round(size / decode_s),
                    "us a batch, both": round((encode_s + decode_s) * 1e6, 1),
                }
            )
    report("codec", rows, "one thread; decode includes the full validation; the program leaves compression to Kafka")


if __name__ == "__main__":
    main()
