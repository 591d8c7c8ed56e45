"""Real frames, recorded from Binance: every field of every aggTrade and bookTicker comes back from its row."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from typing import Any

import numpy as np

from k2ray.exchanges import adapter
from k2ray.exchanges.base import Subscription
from tests.support.recordings import recording


def recorded() -> list[tuple[int, bytes]]:
    with gzip.open(recording("binance"), "rt") as lines:
        items = [json.loads(line) for line in lines]
    return [(round(item["received"] * 1_000_000), item["frame"].encode()) for item in items]


def aggregate_of(row: dict[str, Any]) -> dict[str, Any]:
    extra = dict(row["vendor_data"] or {})
    time = round(row["timestamp"].timestamp() * 1000)
    return {
        "e": "aggTrade",
        "E": int(extra.get("E", time)),
        "s": row["symbol"],
        "a": row["source_sequence"],
        "p": row["price"],
        "q": row["quantity"],
        "f": int(extra["f"]),
        "l": int(extra.get("l", extra["f"])),
        "T": time,
        "m": row["side"] == "SELL",
        "M": extra.get("M", "true") == "true",
    }


def quote_of(row: dict[str, Any]) -> dict[str, Any]:
    names = {"b": "bid_price", "B": "bid_quantity", "a": "ask_price", "A": "ask_quantity"}
    return {"u": row["source_sequence"], "s": row["symbol"]} | {key: row[name] for key, name in names.items()}


def test_every_field_of_recorded_frames_comes_back() -> None:
    frames = recorded()
    wanted: dict[str, list[dict[str, Any]]] = {"aggTrade": [], "bookTicker": []}
    for _, raw in frames:
        message = json.loads(raw)
        kind = message["stream"].partition("@")[2]
        if kind in wanted:
            data = message["data"]
            wanted[kind].append(
                {
                    key: Decimal(value) if key in "pqbBaA" and isinstance(value, str) else value
                    for key, value in data.items()
                }
            )
    symbols = tuple(sorted({json.loads(raw)["stream"].partition("@")[0].upper() for _, raw in frames}))
    decoder = adapter("binance").decoder(Subscription(("agg_trades", "quotes"), symbols))
    times = np.array([received for received, _ in frames], dtype=np.int64)
    found = decoder.decode([raw for _, raw in frames], times)

    assert (len(wanted["aggTrade"]), len(wanted["bookTicker"])) == (2, 84)
    assert [aggregate_of(row) for row in found.batches["agg_trades"].to_pylist()] == wanted["aggTrade"]
    assert [quote_of(row) for row in found.batches["quotes"].to_pylist()] == wanted["bookTicker"]
    assert not found.dead
    assert found.ignored == 179  # 177 depth updates, 2 klines
    currencies = dict(
        zip(*(found.batches["agg_trades"].column(name).to_pylist() for name in ("symbol", "currency")), strict=True)
    )
    assert currencies == {"NKNUSDT": "USDT", "LRCBTC": "BTC"}
