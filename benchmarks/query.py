"""Questions at 1 and 10 million rows: a point, 4 hours of a symbol, a day of 1-minute bars; p50 and p99 of one client.

The data: 20 symbols over 5 days, in files as commits leave them (sorted by symbol and time, one commit's span of time
in each). `10M, small files` is what 5-second commits leave without compaction. `--http` asks through Ray Serve as well.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa

from benchmarks.report import report
from k2ray.model import SEQUENCE_FROM, TIMESTAMP, TRADES_WIRE
from k2ray.query.engine import QueryEngine
from k2ray.query.request import parse_bars, parse_rows
from serve.formats import encode_json
from tests.support.lake import constant, decimals
from tests.support.market_tables import DAY_US, START_US, MarketTables

SYMBOLS = [f"SYM{number:02d}USDT" for number in range(20)]
DAYS = 5
SYMBOL = SYMBOLS[7]
HOUR_US = 3_600_000_000
NOTES = "one client; 20 symbols over 5 days; engine: with JSON; cpu_ms of Serve is the replica's"


def file_of(first: int, rows: int, step_us: float) -> pa.Table:
    """Return trades `first`... of one commit: mixed symbols, times as they follow."""
    rng = np.random.default_rng(first)
    numbers = np.arange(first, first + rows, dtype=np.int64)
    stamps = pa.array(START_US + (numbers * step_us).astype(np.int64)).cast(TIMESTAMP)
    codes = pa.array(rng.integers(0, len(SYMBOLS), rows).astype(np.int32))
    columns = {
        "exchange": constant("binance", rows),
        "symbol": pa.DictionaryArray.from_arrays(codes, pa.array(SYMBOLS)),
        "asset_class": constant("crypto", rows),
        "trade_id": pa.array(numbers).cast(pa.string()),
        "timestamp": stamps,
        "price": decimals(6_700_000_000_000 + rng.integers(-5_000, 5_000, rows).cumsum() * 1_000_000),
        "quantity": decimals(rng.integers(1_000, 5_000_000, rows) * 1_000),
        "currency": constant("USDT", rows),
        "side": pa.DictionaryArray.from_arrays(pa.array((numbers % 2).astype(np.int32)), pa.array(["BUY", "SELL"])),
        "trade_conditions": pa.nulls(rows, pa.list_(pa.string())),
        "source_sequence": pa.array(numbers),
        "sequence_space": constant("", rows),
        "ingestion_timestamp": stamps,
        "origin": constant("live", rows),
        "vendor_data": pa.nulls(rows, TRADES_WIRE.field("vendor_data").type),
    }
    fields = [field for field in TRADES_WIRE if field.name != SEQUENCE_FROM]
    return pa.table([columns[field.name] for field in fields], schema=pa.schema(fields))


def build(folder: Path, rows: int, files: int) -> MarketTables:
    """Make the table, 50 files a snapshot."""
    tables = MarketTables(folder)
    tables.create("quotes")
    step_us = DAYS * DAY_US / rows
    each = rows // files
    for start in range(0, files, 50):
        tables.append_files("trades", (file_of(n * each, each, step_us) for n in range(start, min(files, start + 50))))
    return tables


def questions() -> dict[str, Callable[[int], tuple[str, dict[str, str]]]]:
    """Return name -> maker of the n-th question of that kind: different times, so that nothing is merely remembered."""

    def point(n: int) -> tuple[str, dict[str, str]]:
        at_us = START_US + (n * 7919 % (DAYS * 24)) * HOUR_US + 1_234_567
        return "trades", {"exchange": "binance", "symbols": SYMBOL, "start": str(at_us), "limit": "1"}

    def hours(n: int) -> tuple[str, dict[str, str]]:
        at_us = START_US + (n * 7919 % (DAYS * 24 - 4)) * HOUR_US
        return "trades", {"symbols": SYMBOL, "start": str(at_us), "end": str(at_us + 4 * HOUR_US), "limit": "1000"}

    def bars(n: int) -> tuple[str, dict[str, str]]:
        at_us = START_US + (n % DAYS) * DAY_US
        asked = {"symbols": SYMBOL, "start": str(at_us), "end": str(at_us + DAY_US)}
        return "bars", {**asked, "interval": "1m", "limit": "1440"}

    def newest(n: int) -> tuple[str, dict[str, str]]:
        return "trades", {"symbols": SYMBOLS[n % len(SYMBOLS)], "order": "desc", "limit": "100"}

    def everything(n: int) -> tuple[str, dict[str, str]]:
        return hours(n)[0], {**hours(n)[1], "limit": "1000000"}

    return {
        "point": point,
        "4 h of a symbol, first 1,000": hours,
        "4 h of a symbol, all": everything,
        "day of 1 m bars": bars,
        "newest 100": newest,
    }


def through_engine(engine: QueryEngine) -> Callable[[str, dict[str, str]], int]:
    """Return a client that asks the engine and writes JSON, without HTTP."""

    def ask(path: str, parameters: dict[str, str]) -> int:
        answer = engine.bars(parse_bars(parameters)) if path == "bars" else engine.rows(parse_rows(path, parameters))
        return sum(len(chunk) for chunk in encode_json(answer))

    return ask


def through_http(client: httpx.Client) -> Callable[[str, dict[str, str]], int]:
    """Return a client that asks over HTTP."""

    def ask(path: str, parameters: dict[str, str]) -> int:
        answer = client.get(f"/v1/{path}", params=parameters)
        answer.raise_for_status()
        return len(answer.content)

    return ask


def own_cpu_s() -> float:
    """Return the seconds of CPU that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def replica_cpu_s() -> float:
    """Return the seconds of CPU that Serve's replica has used."""
    processes = psutil.process_iter(["cmdline"])
    found = [one for one in processes if "ServeReplica:bench" in " ".join(one.info["cmdline"] or ())]
    return sum(sum(process.cpu_times()[:2]) for process in found)


def measure(
    dataset: str, way: str, ask: Callable[[str, dict[str, str]], int], times: int, used_s: Callable[[], float]
) -> Iterator[dict[str, Any]]:
    for name, make in questions().items():
        for n in range(3):
            ask(*make(n))
        seconds = []
        before_s = used_s()
        size = 0
        for n in range(times):
            began_s = time.perf_counter()
            size = ask(*make(n))
            seconds.append(time.perf_counter() - began_s)
        cpu_s = used_s() - before_s
        yield {
            "data": dataset,
            "way": way,
            "question": name,
            "p50_ms": round(float(np.percentile(seconds, 50)) * 1e3, 1),
            "p99_ms": round(float(np.percentile(seconds, 99)) * 1e3, 1),
            "cpu_ms": round(cpu_s / times * 1e3, 1),
            "bytes": size,
            "asked": times,
        }


@contextlib.contextmanager
def served(tables: MarketTables) -> Iterator[httpx.Client]:
    """Serve the tables by Ray Serve in the small cluster that tests use (Serve's own proxy, no HAProxy)."""
    import socket

    from ray import serve

    from serve.app import app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app({"settings": tables.settings.to_json()}), name="bench", route_prefix="/", blocking=False)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            deadline_s = time.monotonic() + 60
            while client.get("/health").status_code != httpx.codes.OK and time.monotonic() < deadline_s:
                time.sleep(0.1)
            yield client
    finally:
        serve.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 million rows, 30 questions of each kind, no HTTP")
    parser.add_argument("--http", action="store_true", help="also through Ray Serve")
    parser.add_argument("--data", help="only these datasets, with + between, such as 1M+10M")
    parser.add_argument("--times", type=int, default=200, help="questions of each kind")
    arguments = parser.parse_args()
    datasets = {"1M": (1_000_000, 20), "10M": (10_000_000, 200), "10M, small files": (10_000_000, 2_000)}
    if arguments.quick:
        datasets = {"1M": datasets["1M"]}
    if arguments.data:
        datasets = {name: datasets[name] for name in arguments.data.split("+")}
    times = 30 if arguments.quick else arguments.times
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if arguments.http:
            from tests.support.ray_cluster import prepare_environment, small_cluster

            prepare_environment()
            stack.enter_context(small_cluster())
        for name, (count, files) in datasets.items():
            tables = build(Path(folder) / name.replace(", ", "-").replace(" ", "-"), count, files)
            engine = QueryEngine(tables.catalog, tables.settings, tables.layout)
            rows += measure(name, "engine", through_engine(engine), times, own_cpu_s)
            engine.close()
            if arguments.http:
                with served(tables) as client:
                    rows += measure(name, "Serve", through_http(client), times, replica_cpu_s)
            report("query", rows, NOTES)


if __name__ == "__main__":
    main()
