"""Small wire batches for tests that do not care about the market."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa

from k2ray.model import TRADES_WIRE

START_US = 1_790_000_000_000_000


def trades(rows: int, *, first_id: int = 1, symbol: str = "BTCUSDT", exchange: str = "binance") -> pa.RecordBatch:
    """Return trades with ids `first_id`, `first_id` + 1, ... of one symbol, in the wire schema."""
    ids = list(range(first_id, first_id + rows))
    times = [START_US + number for number in ids]
    values: dict[str, list[object]] = {
        "exchange": [exchange] * rows,
        "symbol": [symbol] * rows,
        "asset_class": ["crypto"] * rows,
        "trade_id": [str(number) for number in ids],
        "timestamp": list(times),
        "price": [Decimal("0.00012345")] * rows,
        "quantity": [Decimal("12345678901.5")] * rows,
        "currency": ["USDT"] * rows,
        "side": ["BUY"] * rows,
        "trade_conditions": [None] * rows,
        "source_sequence": list(ids),
        "sequence_space": [""] * rows,
        "ingestion_timestamp": list(times),
        "origin": ["live"] * rows,
        "vendor_data": [[("f", "1")]] * rows,
        "sequence_from": [number - 1 for number in ids],
    }
    return pa.RecordBatch.from_pydict(values, schema=TRADES_WIRE)
