"""The highest rate sustained by everything on one machine: simulator, broker, feeds, writers, Ray and API.

`python -m benchmarks.end_to_end [--rates 50000,100000] [--seconds 60] [--transport picows]`. Each rate starts with an
empty folder. It is sustained if the writer's lag did not grow over the window and every id sent from its start on is in
the table, once. `lost_before`: while the rest still starts on the same cores, a feed may be too slow for the exchange,
which then drops it; what it missed is in the ledger's gaps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import report
from benchmarks.system import System, running_system
from k2ray.lake.catalog import load_table, open_catalog
from k2ray.layout import DataDir
from k2ray.sim.audit import audit, freshness_s

SYMBOLS = tuple(f"{base}USDT" for base in ("BTC", "ETH", "BNB", "SOL", "XRP", "ADA", "DOGE", "LTC"))
SETTLE_S = 10
SAMPLE_S = 2.0
# A commit's worth of jitter in the lag is no growth.
JITTER_S = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default="50000,100000,150000,200000", help="trades per second, ascending")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--transport", default="websockets", choices=["websockets", "picows"])
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one rate for ten seconds")
    arguments = parser.parse_args()
    rates = [20_000.0] if arguments.quick else [float(rate) for rate in arguments.rates.split(",")]
    seconds = 10.0 if arguments.quick else arguments.seconds
    rows = []
    for rate in rates:
        print(f"{rate:,.0f} trades/s over {arguments.transport} for {seconds:g} s ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="k2ray-bench-") as folder:
            row = measure(Path(folder), rate, seconds, arguments.transport, arguments.connections)
        rows.append(row)
        print(f"  {row}", flush=True)
        if not row["sustained"]:
            break
    name = "end_to_end" if arguments.transport == "websockets" else f"end_to_end_{arguments.transport}"
    report(name, rows, "all parts share the machine; CPU seconds a million trades; freshness: event time to commit")
    return 0


def measure(
    folder: Path, rate: float, seconds: float, transport: str, connections: int, codec: str = "arrow"
) -> dict[str, Any]:
    """Run everything at one rate in an empty folder; return whether that was sustained, and what it cost."""
    with running_system(
        folder, rate=rate, symbols=SYMBOLS, transport=transport, connections=connections, codec=codec
    ) as system:
        time.sleep(SETTLE_S)
        before = system.status()
        spent_before, start, start_us = system.cpu_s(before), time.monotonic(), time.time_ns() // 1_000
        lags = []
        while time.monotonic() - start < seconds:
            time.sleep(SAMPLE_S)
            status = system.status()
            lags.append(_lag(status))
        spent, elapsed = system.cpu_s(status), time.monotonic() - start
        trades = _committed(status) - _committed(before)
        rss = max((actor["rss_bytes"] or 0) for actor in status["actors"] if actor["role"] == "feed")
        system.stop()
        return {
            "rate": int(rate),
            **_proof(system, rate, lags, start_us),
            "committed_per_s": int(trades / elapsed),
            **{
                f"{role}_cpu_s_per_m": round((spent[role] - spent_before.get(role, 0.0)) / max(trades, 1) * 1e6, 2)
                for role in ("feed", "broker", "writer", "simulator", "supervisor", "upkeep", "ray and api")
                if role in spent
            },
            "feed_rss_mb": round(rss / 1e6),
        }


def _proof(system: System, rate: float, lags: list[int], start_us: int) -> dict[str, Any]:
    table = load_table(open_catalog(system.settings, DataDir(system.settings.data_dir)), system.settings, "trades")
    assert table is not None
    assert system.sim.truth is not None
    found = audit(system.sim.truth, table, "trade", since_us=start_us)
    since_connect = audit(system.sim.truth, table, "trade")
    fresh = freshness_s(table) or [float("nan")] * 2
    third = max(1, len(lags) // 3)
    growth = sum(lags[-third:]) / third - sum(lags[:third]) / third
    return {
        "sustained": found.exact and growth < rate * JITTER_S,
        "lag_growth": int(growth),
        "stored": found.stored,
        "lost": found.lost,
        "lost_before": since_connect.lost - found.lost,
        "duplicated": found.duplicated,
        "fresh_p50_s": round(fresh[0], 2),
        "fresh_p99_s": round(fresh[1], 2),
    }


def _writers(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [actor for actor in status["actors"] if actor["role"] == "writer"]


def _lag(status: dict[str, Any]) -> int:
    return sum(int(actor["lag_trades"] or 0) for actor in _writers(status))


def _committed(status: dict[str, Any]) -> int:
    return sum(int(actor["detail"].get("rows_committed", 0)) for actor in _writers(status))


if __name__ == "__main__":
    sys.exit(main())
