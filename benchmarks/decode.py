"""Frames to exact Arrow batches, single thread: trades and quotes, 20 to 4,000 frames together.

python benchmarks/decode.py [--quick]
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.report import report
from k2ray.exchanges import adapter
from k2ray.exchanges.base import Subscription

SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "BTCFDUSD", "SOLUSDT", "XRPUSDT")
START_US = 1_790_000_000_000_000


def decimal(rng: random.Random, below: int) -> str:
    return f"{rng.randint(0, below)}.{rng.randint(0, 10**8 - 1):08d}"


def trade(number: int, rng: random.Random) -> bytes:
    symbol = SYMBOLS[number % len(SYMBOLS)]
    at = START_US + number * 37
    return (
        f'{{"stream":"{symbol.lower()}@trade","data":{{"e":"trade","E":{at},"s":"{symbol}",'
        f'"t":{3_000_000_000 + number},"p":"{decimal(rng, 99999)}","q":"{decimal(rng, 9)}",'
        f'"T":{at},"m":{rng.choice(("true", "false"))},"M":true}}}}'
    ).encode()


def aggregate(number: int, rng: random.Random) -> bytes:
    symbol = SYMBOLS[number % len(SYMBOLS)]
    at = START_US + number * 37
    return (
        f'{{"stream":"{symbol.lower()}@aggTrade","data":{{"e":"aggTrade","E":{at + 90},"s":"{symbol}",'
        f'"a":{2_000_000_000 + number},"p":"{decimal(rng, 99999)}",'
        f'"q":"{decimal(rng, 9)}","f":{3 * number},"l":{3 * number + 2},"T":{at},'
        f'"m":{rng.choice(("true", "false"))},"M":true}}}}'
    ).encode()


def quote(number: int, rng: random.Random) -> bytes:
    symbol = SYMBOLS[number % len(SYMBOLS)]
    bid = rng.randint(1, 99999)
    return (
        f'{{"stream":"{symbol.lower()}@bookTicker","data":{{"u":{50_000_000_000 + 3 * number},"s":"{symbol}",'
        f'"b":"{bid}.{rng.randint(0, 10**8 - 1):08d}","B":"{decimal(rng, 9)}",'
        f'"a":"{bid + 1}.{rng.randint(0, 10**8 - 1):08d}","A":"{decimal(rng, 9)}"}}}}'
    ).encode()


def measure(frames: list[bytes], together: int, seconds: float) -> float:
    """Return rows per CPU second."""
    subscription = Subscription(("trades", "agg_trades", "quotes"), SYMBOLS)
    decoder = adapter("binance").decoder(subscription)
    received = np.full(together, START_US, dtype=np.int64)
    runs = [frames[at : at + together] for at in range(0, len(frames), together)]
    best = 0.0
    for _ in range(3):
        rows, started = 0, time.process_time()
        while time.process_time() - started < seconds:
            for run in runs:
                decoded = decoder.decode(run, received)
                rows += sum(batch.num_rows for batch in decoded.batches.values())
                assert not decoded.dead
        best = max(best, rows / (time.process_time() - started))
    return best


def main() -> None:
    seconds = 0.1 if "--quick" in sys.argv else 1.0
    rng = random.Random(7)
    kinds: dict[str, Callable[[int, random.Random], bytes]] = {
        "trades": trade,
        "agg_trades": aggregate,
        "quotes": quote,
    }
    made = {name: [kind(number, rng) for number in range(16_000)] for name, kind in kinds.items()}
    made["half trades, half quotes"] = [kind(i, rng) for i in range(8_000) for kind in (trade, quote)]
    rows: list[dict[str, Any]] = []
    for name, frames in made.items():
        for together in (20, 200, 2000, 4000):
            rate = measure(frames, together, seconds)
            rows.append({"frames": name, "together": together, "rows_per_cpu_second": round(rate)})
    report(
        "decode",
        rows,
        "One thread, best of 3, CPU seconds. Aim: 800,000 trades per CPU second at 200 to 4,000 together.",
    )


if __name__ == "__main__":
    main()
