"""A full topic of Arrow records to committed rows: the writer alone, and how long it takes to its first commit.

python benchmarks/drain.py [--quick]

Starts a local Kafka, fills a trades topic with records of 500 rows of 50 symbols (random walk prices), then drains it
with one `TableWriter` at the default limits (500,000 rows, 64 MiB). The writer is a process of its own, so that its
start and CPU seconds are its alone; the broker's are listed beside. Kill: the writer is killed -9 after its first
commit, and the time counts from the new process's start to its first commit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.report import report
from k2ray.errors import RegistryUnavailable
from k2ray.lake.catalog import load_table, open_catalog
from k2ray.lake.writer import TableWriter
from k2ray.layout import DataDir
from k2ray.log.broker import LocalBroker
from k2ray.log.partition import partition_of
from k2ray.log.producer import LogProducer
from k2ray.log.topics import ensure_topics, table_topics
from k2ray.settings import Settings, load_settings
from k2ray.wire.encoder import AvroEncoder, encoder_for, publish_rows
from k2ray.wire.registry import LazyRegistry
from tests.support.lake import decimals, trades

SYMBOLS = [f"SYM{number}USDT" for number in range(50)]
ROWS_PER_RECORD = 500


def fill(bootstrap: str, settings: Settings, rows: int) -> None:
    """Publish `rows` trades, ids dense for each symbol, with the settings' codec."""
    registry = LazyRegistry(settings, bootstrap)
    encoder = encoder_for(settings.wire, registry)
    if isinstance(encoder, AvroEncoder):
        learn(encoder, table_topics(settings, "trades")[0])
    rng = np.random.default_rng(3)
    topic = table_topics(settings, "trades")[0]
    by_partition: dict[int, list[str]] = {}
    for symbol in SYMBOLS:
        by_partition.setdefault(partition_of("binance", symbol, settings.kafka.partitions), []).append(symbol)
    ids = dict.fromkeys(SYMBOLS, 1)
    start_us = time.time_ns() // 1000 - rows
    producer = LogProducer(bootstrap, client_id="fill", spool=None, settings=settings.kafka)
    for number in range(rows // ROWS_PER_RECORD):
        partition = number % settings.kafka.partitions
        names = by_partition[partition]
        at = rng.integers(0, len(names), ROWS_PER_RECORD)
        numbers = np.empty(ROWS_PER_RECORD, dtype=np.int64)
        for index, name in enumerate(names):
            mask = at == index
            count = int(mask.sum())
            numbers[mask] = ids[name] + np.arange(count)
            ids[name] += count
        batch = trades(numbers, [names[index] for index in at], start_us=start_us, step_us=50)
        batch = with_market_prices(batch, rng)
        if producer.stats().bytes_in_flight > settings.kafka.queue_max_bytes // 2:
            producer.flush(60)
        publish_rows(producer, encoder, topic, partition, "trades", batch)
        producer.poll()
    assert producer.flush(120)
    producer.close(10)
    registry.close()


def learn(encoder: AvroEncoder, topic: str) -> None:
    """Get the topic's schema id; a broker that has just started needs a moment."""
    for _ in range(30):
        try:
            encoder.learn(topic, "trades")
            return
        except RegistryUnavailable:
            time.sleep(1)
    raise SystemExit("the registry does not answer")


def with_market_prices(batch: pa.RecordBatch, rng: np.random.Generator) -> pa.RecordBatch:
    """Replace prices and quantities by ones as compressible as real ones: a random walk in ticks, few round sizes."""
    rows = batch.num_rows
    price = decimals(np.cumsum(rng.integers(-2, 3, rows)) * 1_000_000 + 6_000_000_000_000)
    quantity = decimals(rng.geometric(0.002, rows).astype(np.int64) * 1_000)
    for name, column in (("price", price), ("quantity", quantity)):
        at = batch.schema.get_field_index(name)
        batch = batch.set_column(at, batch.schema.field(at), column)
    return batch


def child(settings_json: str, bootstrap: str, stop_after: int) -> None:
    """The writer's process: drain, print what it took; with `stop_after` rows committed, die by kill -9."""
    started = psutil.Process().create_time()
    settings = Settings.from_json(settings_json)
    writer = TableWriter(settings, DataDir(settings.data_dir), "trades", bootstrap)
    writer.position()
    first_commit = None
    ready, cpu_ready = time.time(), time.process_time()
    idle = 0
    while idle < 3:
        before = writer.status()
        report = writer.step(0.2)
        after = writer.status()
        if first_commit is None and after.commits:
            first_commit = time.time() - started
        if stop_after and after.rows_committed >= stop_after:
            print(json.dumps({"first_commit_s": first_commit}), flush=True)
            psutil.Process().kill()
        idle = idle + 1 if not report.records and not before.rows_pending else 0
        if not report.records and not after.lag_trades:
            writer.drain()
            break
    end = time.time()
    status = writer.status()
    print(
        json.dumps(
            {
                "rows": status.rows_committed,
                "commits": status.commits,
                "seconds": end - ready,
                "cpu_s": time.process_time() - cpu_ready,
                "start_s": ready - started,
                "first_commit_s": first_commit if first_commit is not None else time.time() - started,
                "rss_mb": psutil.Process().memory_info().rss / 1e6,
                "duplicates": status.duplicates,
            }
        ),
        flush=True,
    )
    writer.close()


def run_child(settings: Settings, bootstrap: str, stop_after: int = 0) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", settings.to_json(), bootstrap, str(stop_after)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    rows = 2_000_000 if "--quick" in sys.argv else 5_000_000
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        broker = LocalBroker(DataDir(Path(folder) / "kafka"))
        address = broker.start()
        try:
            for name, stop_after in (("drain", 0), ("drain again", 0), ("restart after kill -9", 1)):
                arguments = {
                    "data_dir": str(Path(folder) / name.replace(" ", "-")),
                    "kafka": {"topic_prefix": "b" + name.replace(" ", "_").replace("-", "_")},
                }
                settings = load_settings(arguments=arguments, environ={})
                ensure_topics(address.bootstrap, settings)
                fill(address.bootstrap, settings, rows)
                broker_cpu = sum(psutil.Process(address.pid).cpu_times()[:2])
                if stop_after:
                    run_child(settings, address.bootstrap, stop_after)
                found = run_child(settings, address.bootstrap)
                broker_cpu = sum(psutil.Process(address.pid).cpu_times()[:2]) - broker_cpu
                catalog = open_catalog(settings, DataDir(settings.data_dir))
                table = load_table(catalog, settings, "trades")
                assert table is not None
                stored = table.current_snapshot().summary  # type: ignore[union-attr]
                total = int(stored.additional_properties["total-records"])  # type: ignore[union-attr]
                size = int(stored.additional_properties["total-files-size"])  # type: ignore[union-attr]
                assert total == rows, f"{total:,} rows stored of {rows:,}"
                lines.append(
                    {
                        "run": name,
                        "rows": found["rows"],
                        "rows_per_s": round(found["rows"] / found["seconds"]),
                        "cpu_s_per_million": round(found["cpu_s"] / found["rows"] * 1e6, 2),
                        "broker_cpu_s_per_million": round(broker_cpu / found["rows"] * 1e6, 2),
                        "commits": found["commits"],
                        "bytes_per_row": round(size / total, 1),
                        "start_s": round(found["start_s"], 2),
                        "first_commit_s": round(found["first_commit_s"], 2),
                        "rss_mb": round(found["rss_mb"]),
                    }
                )
                print(lines[-1], flush=True)
        finally:
            broker.stop()
    notes = "Aims: 800,000 rows/s, 1.5 CPU s a million rows, first commit within 10 s of the start, also after kill -9."
    report("drain", lines, notes)


if __name__ == "__main__":
    if "--child" in sys.argv:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
