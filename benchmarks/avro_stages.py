"""Where the CPU of a row goes, step by step, with either codec: `python -m benchmarks.avro_stages [--quick]`.

Each step is done for all rows before the next one begins, so that the client's own threads, which work ahead, are
counted where they belong. CPU of this process; the broker's is listed beside, for both directions together.
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
import psutil
import pyarrow as pa

from benchmarks.drain import SYMBOLS, learn, with_market_prices
from benchmarks.report import report
from k2ray.lake.commit import commit_append
from k2ray.lake.intake import Batch, Intake
from k2ray.lake.stage import Origin, concat_rows, stage
from k2ray.layout import DataDir
from k2ray.ledger import Ledger
from k2ray.log.broker import LocalBroker
from k2ray.log.consumer import LogReader, Position
from k2ray.log.producer import LogProducer
from k2ray.log.records import Fetched, RecordRun
from k2ray.log.topics import ensure_topics, table_topics
from k2ray.settings import Settings, load_settings
from k2ray.wire.encoder import AvroEncoder, Encoded, encoder_for
from k2ray.wire.registry import LazyRegistry
from k2ray.wire.schemas import Schemas
from tests.support.lake import append_of, open_table, trades

T = TypeVar("T")
TOGETHER = 500
FETCH = 8_000
QUEUED_ROWS = 100_000


class Meter:
    """CPU seconds by step."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}

    def time(self, step: str, work: Callable[[], T]) -> T:
        """Do it, and add what it took."""
        before = time.process_time()
        done = work()
        self.cpu_s[step] = self.cpu_s.get(step, 0.0) + time.process_time() - before
        return done


def batches(rows: int) -> list[pa.RecordBatch]:
    """Return trades of all symbols with dense ids and prices that walk, in batches as a feed makes them."""
    rng = np.random.default_rng(3)
    per_symbol = TOGETHER // len(SYMBOLS)
    start_us = time.time_ns() // 1000 - rows
    found = []
    for number in range(rows // TOGETHER):
        ids = np.repeat(np.arange(number * per_symbol, (number + 1) * per_symbol), len(SYMBOLS))
        batch = trades(ids, list(SYMBOLS) * per_symbol, start_us=start_us, step_us=50)
        found.append(with_market_prices(batch, rng))
    return found


def run(settings: Settings, bootstrap: str, rows: int, broker_cpu: Callable[[], float]) -> dict[str, float]:
    """Bring rows from batches into the table; return step -> CPU seconds."""
    meter = Meter()
    registry = LazyRegistry(settings, bootstrap)
    encoder = encoder_for(settings.wire, registry)
    (topic,) = table_topics(settings, "trades")
    if isinstance(encoder, AvroEncoder):
        learn(encoder, topic)
    made = batches(rows)
    encoded = meter.time("encode", lambda: [encoder.encode(topic, "trades", batch) for batch in made])
    spent = broker_cpu()
    producer = LogProducer(bootstrap, client_id="stages", spool=None, settings=settings.kafka)
    meter.time("produce", lambda: produce(producer, topic, encoded))
    producer.close(10)
    reader = LogReader(bootstrap, settings.kafka.options)
    reader.assign({(topic, 0): Position(0)})
    pieces = meter.time("poll", lambda: fetch(reader, rows))
    meter.cpu_s["broker"] = broker_cpu() - spent
    reader.close()
    intake, batch = Intake("trades", Ledger(), Schemas(registry, settings.wire.cache_size)), Batch()
    parts = meter.time("decode", lambda: [intake.read(items) for items in pieces])
    meter.time("ledger", lambda: [intake.take(part, batch, 0.0) for part in parts])
    registry.close()
    assert (batch.rows, batch.duplicates, batch.dead) == (rows, 0, [])
    with tempfile.TemporaryDirectory() as folder:
        table = open_table(Path(folder))
        origin = Origin("id-0", 0, 0, 1)
        meter.time("stage and commit", lambda: store(table, batch, origin))
    return meter.cpu_s


def produce(producer: LogProducer, topic: str, encoded: list[Encoded]) -> None:
    for number, (values, headers) in enumerate(encoded):
        if headers:
            producer.publish(topic, 0, values[0], headers, TOGETHER)
        else:
            producer.publish_each(topic, 0, values)
        if number % (QUEUED_ROWS // TOGETHER) == 0:
            producer.flush(60)
        producer.poll()
    assert producer.flush(120)


def fetch(reader: LogReader, rows: int) -> list[list[Fetched]]:
    found: list[list[Fetched]] = []
    left = rows
    while left > 0:
        items = reader.fetch(FETCH, 1.0)
        if not items:
            continue
        found.append(items)
        left -= sum(len(item.values) if isinstance(item, RecordRun) else TOGETHER for item in items)
    return found


def store(table: Any, batch: Batch, origin: Origin) -> None:
    stage(table, "trades", concat_rows(batch.pieces), origin)
    commit_append(table, append_of(table, 0, 1))


def main() -> None:
    rows, runs = (200_000, 1) if "--quick" in sys.argv else (500_000, 3)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        broker = LocalBroker(DataDir(Path(folder) / "kafka"))
        address = broker.start()

        def broker_cpu() -> float:
            return float(sum(psutil.Process(address.pid).cpu_times()[:2]))

        try:
            for codec in ("arrow", "avro"):
                spent: list[dict[str, float]] = []
                for number in range(runs):
                    arguments = {
                        "data_dir": str(Path(folder) / "data"),
                        "kafka": {"topic_prefix": f"{codec}{number}", "partitions": 1},
                        "wire": {"codec": codec},
                    }
                    settings = load_settings(arguments=arguments, environ={})
                    ensure_topics(address.bootstrap, settings)
                    spent.append(run(settings, address.bootstrap, rows, broker_cpu))
                us = {step: median(one[step] for one in spent) / rows * 1e6 for step in spent[0]}
                writer = sum(us[step] for step in ("poll", "decode", "ledger", "stage and commit"))
                us["the writer's four"] = writer
                shown = {step: round(value, 2) for step, value in us.items()}
                lines.append({"codec": codec, **shown, "writer_rows_per_cpu_s": round(1e6 / writer)})
                print(lines[-1], flush=True)
        finally:
            broker.stop()
    report(
        "avro_stages",
        lines,
        f"CPU microseconds a row, {rows:,} rows in batches of {TOGETHER}; encode and produce are the feed's, the other "
        "four the writer's.",
    )


if __name__ == "__main__":
    main()
