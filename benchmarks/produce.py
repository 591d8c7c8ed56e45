"""Rows to the real local broker and back: rows/s, and CPU seconds a million rows by process, by place of compression.

python benchmarks/produce.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.codec import trade_batch
from benchmarks.report import report
from k2ray.layout import DataDir
from k2ray.log.broker import LocalBroker
from k2ray.log.consumer import LogReader, Position
from k2ray.log.producer import LogProducer
from k2ray.log.spool import Spool
from k2ray.log.topics import ensure_topics, table_topics
from k2ray.settings import Kafka, Settings
from k2ray.wire.codec import decode, encode_rows

# (compression inside the Arrow value, Kafka's compression of its batches)
WAYS = ((None, "lz4"), (None, "zstd"), ("lz4", "none"), (None, "none"))


def cpu_of(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def one_way(broker: tuple[str, int], ipc: Any, kafka: str, size: int, total: int, spool_folder: Path) -> dict[str, Any]:
    bootstrap, pid = broker
    settings = Settings(
        kafka=Kafka(topic_prefix=f"bench_{ipc}_{kafka}_{size}".lower(), options={"compression.type": kafka})
    )
    ensure_topics(bootstrap, settings)
    topic = table_topics(settings, "trades")[0]
    batches = [trade_batch(size, start=number * size) for number in range(32)]
    count = total // size

    spool = Spool(spool_folder, 2**30)
    producer = LogProducer(bootstrap, client_id="bench", spool=spool, settings=settings.kafka)
    producer.publish(topic, 0, *encode_rows("trades", batches[0], ipc), rows=size)
    producer.flush(30)
    began, own, theirs = time.monotonic(), time.process_time(), cpu_of(pid)
    for number in range(count):
        # Leave the spool out of this: a full queue is waited for.
        while producer.stats().bytes_in_flight > settings.kafka.queue_max_bytes * 0.8:
            producer.poll(0.005)
        value, headers = encode_rows("trades", batches[number % len(batches)], ipc)
        producer.publish(topic, number % 4, value, headers, rows=size)
        producer.poll(0)
    if not producer.flush(120):
        raise SystemExit("not everything arrived")
    produce_s, produce_cpu, broker_cpu = time.monotonic() - began, time.process_time() - own, cpu_of(pid) - theirs
    spooled = producer.stats().failures
    producer.close(5)
    spool.close()

    reader = LogReader(bootstrap)
    wire_bytes = read = 0
    reader.assign({(topic, partition): Position(0) for partition in range(4)})
    began, own, theirs = time.monotonic(), time.process_time(), cpu_of(pid)
    while read < (count + 1) * size:
        for record in reader.poll(500, 5.0):
            batch = decode(record.value, record.headers)
            read += batch.num_rows
            wire_bytes += len(record.value)
    consume_s, consume_cpu, broker_read_cpu = time.monotonic() - began, time.process_time() - own, cpu_of(pid) - theirs
    reader.close()
    millions = count * size / 1e6
    return {
        "rows": size,
        "ipc": ipc or "none",
        "kafka": kafka,
        "produce rows/s": round(count * size / produce_s),
        "producer cpu s/M": round(produce_cpu / millions, 3),
        "broker cpu s/M": round(broker_cpu / millions, 3),
        "consume rows/s": round(read / consume_s),
        "consumer cpu s/M": round(consume_cpu / millions, 3),
        "broker read cpu s/M": round(broker_read_cpu / millions, 3),
        "all cpu s/M": round((produce_cpu + broker_cpu + consume_cpu + broker_read_cpu) / millions, 3),
        "spooled": spooled,
    }


def main() -> None:
    quick = "--quick" in sys.argv
    sizes = (500,) if quick else (20, 500, 4000)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="k2ray-bench-") as folder:
        local = LocalBroker(DataDir(Path(folder)))
        address = local.start()
        try:
            # The first run warms the JVM up and is not shown.
            one_way((address.bootstrap, address.pid), None, "lz4", 501, 500_000, Path(folder) / "warm")
            for size in sizes:
                total = {20: 400_000, 500: 1_000_000 if quick else 5_000_000, 4000: 8_000_000}[size]
                for ipc, kafka in WAYS:
                    spool = Path(folder) / f"spool-{ipc}-{kafka}-{size}"
                    rows.append(one_way((address.bootstrap, address.pid), ipc, kafka, size, total, spool))
        finally:
            local.stop()
    report("produce", rows, "encode to IPC and decode with validation included; acks=all, idempotent, 4 partitions")


if __name__ == "__main__":
    main()
