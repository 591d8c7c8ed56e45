"""How fast gaps are filled: within the exchange's request weight, and as fast as this machine can.

python -m benchmarks.backfill [--quick]

A simulated exchange (TLS, its weights, 6,000 a minute, obeyed) makes trades while a feed is away; then a backfill
session, a local Kafka and a writer fill the hole, all on the same cores. `budget`: the default settings and weights.
`unbounded`: the exchange and the settings allow a million times more, so what is measured is our own work. Rows count
once they are committed; ids are compared with what the exchange made.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog

from benchmarks.report import report
from k2ray import model
from k2ray.backfill.committed import CommittedLedgers
from k2ray.backfill.recorder import gap_recorder
from k2ray.backfill.session import BackfillSession
from k2ray.clock import SystemClock
from k2ray.errors import TryAgain
from k2ray.exchanges import rest_adapter
from k2ray.feed.transport import tls_context
from k2ray.lake.catalog import load_table, open_catalog
from k2ray.lake.writer import TableWriter
from k2ray.layout import DataDir
from k2ray.log.broker import LocalBroker
from k2ray.log.consumer import LogReader
from k2ray.log.partition import partition_of
from k2ray.log.producer import LogProducer
from k2ray.log.topics import ensure_topics, table_topics
from k2ray.settings import Settings, load_settings
from k2ray.sim.process import Sim, running_sim
from k2ray.wire.encoder import ARROW, publish_rows

SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT")
PATIENCE_S = 600
PAUSE_S = 0.2


class NoOthers:
    """Nobody else takes of the address's budget."""

    async def permit(self, amount: int) -> None:
        return

    async def ban(self, for_s: float) -> None:
        return

    async def observe(self, used: int) -> None:
        return


def settings_of(folder: Path, sim: Sim, bootstrap: str, prefix: str, weight: int, section: dict[str, Any]) -> Settings:
    exchange = {"ws_url": sim.ws_url, "rest_url": sim.rest_url, "channels": ["trades"], "symbols": list(SYMBOLS)}
    return load_settings(
        arguments={
            "data_dir": str(folder),
            "tls": {"ca_file": str(sim.ca_file)},
            "exchanges": {"binance": {**exchange, "limits": {"weight": weight}}},
            "kafka": {"bootstrap_servers": bootstrap, "topic_prefix": prefix},
            "backfill": {"grace_s": 1, "interval_s": 1, "prove_interval_s": 2, **section},
            "lake": {"commit": {"interval_s": 1}},
        },
        environ={},
    )


@contextlib.contextmanager
def writing(settings: Settings, layout: DataDir, bootstrap: str) -> Iterator[None]:
    """Run the writer in a thread."""
    stopped = threading.Event()

    def work() -> None:
        writer = TableWriter(settings, layout, "trades", bootstrap)
        while not stopped.is_set():
            with contextlib.suppress(TryAgain):
                writer.step(0.05)
        writer.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def committed(catalog: Catalog, settings: Settings) -> int:
    table = load_table(catalog, settings, "trades")
    snapshot = table.current_snapshot() if table is not None else None
    return int(snapshot.summary["total-records"]) if snapshot is not None and snapshot.summary is not None else 0


async def fill(settings: Settings, layout: DataDir, bootstrap: str, wanted_rows: int, seconds: float) -> dict[str, Any]:
    """Run the backfill until so many rows are committed, or for so long."""
    clock = SystemClock()
    catalog = open_catalog(settings, layout)
    producer = LogProducer(bootstrap, client_id="backfill", spool=None, settings=settings.kafka)
    reader = LogReader(bootstrap)
    session = BackfillSession(
        settings,
        "binance",
        producer,
        ARROW,
        reader,
        CommittedLedgers(catalog, settings, "binance", clock),
        gap_recorder(catalog, settings, layout, "binance", clock),
        NoOthers(),
        tls_context(settings.tls.ca_file),
        clock,
    )
    task = asyncio.create_task(session.run())
    before, started_s, used = session.status(), time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(round(seconds / PAUSE_S)):
        await asyncio.sleep(PAUSE_S)
        if not before.pages:  # the first look, and the grace, are not part of the rate
            before, started_s, used = session.status(), time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        elif task.done() or committed(catalog, settings) >= wanted_rows:
            break
    took_s, after, spent = time.monotonic() - started_s, session.status(), resource.getrusage(resource.RUSAGE_SELF)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    producer.close(30)
    reader.close()
    pages = after.pages - before.pages
    cpu_s = spent.ru_utime + spent.ru_stime - used.ru_utime - used.ru_stime
    return {
        "requests": pages,
        "requests_per_s": pages / took_s,
        "rows_per_s": (after.rows - before.rows) / took_s,
        "weight_per_min": 25 * pages / took_s * 60,
        "refused": sum(after.calls.get(kind, 0) for kind in ("limited", "banned")),
        "cpu_s_per_m_rows": cpu_s / max(1, after.rows - before.rows) * 1e6,
        "seconds": took_s,
    }


def run(case: str, rows: int, weight: int, section: dict[str, Any], seconds: float) -> dict[str, Any]:
    arguments = ("--weight-per-min", str(weight)) if weight != 6_000 else ()
    with tempfile.TemporaryDirectory(prefix="k2ray-bench-") as name:
        folder = Path(name)
        broker = LocalBroker(DataDir(folder / "broker"))
        bootstrap = broker.start().bootstrap
        try:
            with running_sim(
                folder, rate=60_000, symbols=SYMBOLS, arguments=(*arguments, "--frames", str(rows))
            ) as sim:
                settings = settings_of(folder / "data", sim, bootstrap, "bench", weight, section)
                layout = DataDir(folder / "data")
                ensure_topics(bootstrap, settings)
                made = first_rows(sim, settings, bootstrap)
                with writing(settings, layout, bootstrap):
                    found = asyncio.run(fill(settings, layout, bootstrap, made, seconds))
                exact = compare(sim, settings, layout)
        finally:
            broker.stop()
    return {"case": case, **found, **exact}


def first_rows(sim: Sim, settings: Settings, bootstrap: str) -> int:
    """Wait until the market is over; let a feed have seen each symbol's first trade and nothing more.

    Returns:
        How many trades the exchange made.
    """
    deadline_s, made = time.monotonic() + PATIENCE_S, -1
    while made != (made := sim.get("/api/v3/ticker/24hr")[0]["lastId"]):
        assert time.monotonic() < deadline_s
        time.sleep(1)
    producer = LogProducer(bootstrap, client_id="feed", spool=None, settings=settings.kafka)
    rest = rest_adapter("binance")
    tickers = sim.get("/api/v3/ticker/24hr")
    for ticker in tickers:
        question = rest.page("trades", ticker["symbol"], ticker["firstId"], 1)
        with httpx.Client(verify=sim.tls()) as client:
            body = client.get(sim.rest_url + question.path, headers=question.headers).content
        rows = rest.read_page("trades", ticker["symbol"], body, time.time_ns() // 1000).rows
        assert rows is not None
        assert rows.schema.equals(model.TRADES_WIRE)
        partition = partition_of("binance", ticker["symbol"], settings.kafka.partitions)
        publish_rows(producer, ARROW, table_topics(settings, "trades")[0], partition, "trades", rows)
    assert producer.flush(30)
    producer.close(5)
    return sum(int(ticker["count"]) for ticker in tickers)


def compare(sim: Sim, settings: Settings, layout: DataDir) -> dict[str, Any]:
    """Compare ids: what is stored against what the exchange made, up to the highest id stored."""
    table = load_table(open_catalog(settings, layout), settings, "trades")
    assert table is not None
    stored = table.scan(selected_fields=("symbol", "source_sequence")).to_arrow()
    truth = sim.truth_now()
    truth = truth.filter(pc.equal(truth["channel"].cast("string"), "trade"))
    missing = doubled = 0
    for symbol in SYMBOLS:
        mine = stored.filter(pc.equal(stored["symbol"], symbol))["source_sequence"].to_pylist()
        theirs = truth.filter(pc.equal(truth["symbol"].cast("string"), symbol))["id"].to_pylist()
        top = max(mine)
        below = {one for one in theirs if one <= top}
        missing += len(below - set(mine))
        doubled += len(mine) - len(set(mine))
    return {"stored": stored.num_rows, "missing_below_the_newest": missing, "duplicated": doubled}


def main() -> int:
    quick = "--quick" in sys.argv
    rows = 100_000 if quick else 600_000
    wide = {"weight_share": 1, "concurrency": 4}
    report(
        "backfill",
        [
            run("budget", rows, 6_000, {}, 60 if quick else 150),
            run("unbounded, 1 at once", rows, 6_000_000, {**wide, "concurrency": 1}, PATIENCE_S),
            run("unbounded, 4 at once", rows, 6_000_000, wide, PATIENCE_S),
        ],
        "Exchange, broker, backfill and writer on the same cores; pages of 1,000 trades, weight 25. Budget: half of "
        "6,000 a minute (backfill.weight_share), so 120 pages a minute: 2,000 rows/s, and a first minute's burst. "
        "CPU seconds: of backfill and writer together.",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
