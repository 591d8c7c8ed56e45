"""What a rotation costs: how fresh rows are in Kafka while a connection is being replaced, and when none is.

python -m benchmarks.rotation [--quick]

This process is the feed, with its real overlap; the exchange, the broker and the reader that measures are processes of
their own. Fresh: from a trade's own time to the moment that a consumer has read it; of a trade that came twice, the
first copy counts. Rotating: from the order until the new connection has taken over.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import uvloop

from benchmarks.lone_feed import SYMBOLS, feed_settings
from benchmarks.report import report
from k2ray.feed.session import FeedSession
from k2ray.layout import DataDir
from k2ray.log.broker import LocalBroker
from k2ray.log.consumer import LogReader, Position
from k2ray.log.producer import LogProducer
from k2ray.log.spool import Spool
from k2ray.log.topics import topic_name
from k2ray.settings import Settings
from k2ray.sim.process import running_sim
from k2ray.wire.codec import decode


def read(bootstrap: str, topic: str, partitions: int, stop: Pipe) -> None:
    """Read the topic until told to stop; answer with (arrival, event time, symbol's number, id) of every row, in us."""
    reader = LogReader(bootstrap)
    reader.assign({(topic, partition): Position(0) for partition in range(partitions)})
    columns: list[np.ndarray[Any, Any]] = []
    while not stop.poll():
        records = reader.poll(10_000, 0.02)
        arrived_us = time.time_ns() // 1_000
        for record in records:
            batch = decode(record.value, record.headers)
            assert isinstance(batch, pa.RecordBatch)
            names = batch.column("symbol").dictionary.to_pylist()
            number = np.array([SYMBOLS.index(name) for name in names])[batch.column("symbol").indices.to_numpy()]
            times = batch.column("timestamp").cast(pa.int64()).to_numpy()
            ids = batch.column("source_sequence").to_numpy()
            columns.append(np.stack([np.full(len(ids), arrived_us), times, number, ids]))
    reader.close()
    stop.recv()
    stop.send(np.concatenate(columns, axis=1))


async def rotate(
    settings: Settings, folder: Path, rotations: int, steady_s: float
) -> tuple[list[tuple[int, int, bool]], dict[str, float]]:
    """Run the feed; return (from, to, rotating) of each phase in us, and CPU shares of both kinds."""
    sys.setswitchinterval(0.0005)  # as the feed's actor does
    bootstrap = settings.kafka.bootstrap_servers
    assert bootstrap is not None
    producer = LogProducer(
        bootstrap, client_id="bench-rotation", spool=Spool(folder / "spool", 2**30), settings=settings.kafka
    )
    session = FeedSession(settings, "binance", 0, producer)
    run = asyncio.create_task(session.run())
    while not session.status().ready or session.status().rows == 0:  # noqa: ASYNC110 - the session tells nobody
        await asyncio.sleep(0.05)
    await asyncio.sleep(2)
    phases: list[tuple[int, int, bool]] = []
    cpu_s = {True: 0.0, False: 0.0}
    for number in range(rotations):
        for rotating in (False, True):
            began_us, began_cpu_s = time.time_ns() // 1_000, time.process_time()
            if rotating:
                assert session.rotate() == "rotating"
                while session.status().rotations["operator"] <= number:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            else:
                await asyncio.sleep(steady_s)
            phases.append((began_us, time.time_ns() // 1_000, rotating))
            cpu_s[rotating] += time.process_time() - began_cpu_s
    status = session.status()
    assert (status.reconnects, status.dead_letters) == (0, 0), f"{status}"
    await session.drain()
    await run
    await asyncio.to_thread(producer.close, 5)
    took = {kind: sum(end - start for start, end, which in phases if which is kind) / 1e6 for kind in (True, False)}
    return phases, {"steady": cpu_s[False] / took[False], "rotating": cpu_s[True] / took[True]}


def fresh(rows: np.ndarray[Any, Any], phases: list[tuple[int, int, bool]], rotating: bool) -> np.ndarray[Any, Any]:
    """Return the freshness in ms of the rows that arrived in phases of one kind, first copies alone."""
    rows = rows[:, np.argsort(rows[0], kind="stable")]
    _, first = np.unique(rows[2] << 48 | (rows[3] & (1 << 48) - 1), return_index=True)
    rows = rows[:, first]
    inside = np.zeros(rows.shape[1], dtype=np.bool_)
    for start_us, end_us, which in phases:
        if which is rotating:
            inside |= (rows[0] >= start_us) & (rows[0] < end_us)
    return (rows[0] - rows[1])[inside] / 1_000


def measure(
    bootstrap: str, folder: Path, transport: str, rate: float, rotations: int, steady_s: float
) -> list[dict[str, Any]]:
    with running_sim(folder, rate=rate, symbols=SYMBOLS, truth=False, channels="trade") as sim:
        settings = feed_settings(sim, bootstrap, folder, transport, ["trades"])
        topic = topic_name(settings.kafka.topic_prefix, "crypto", "trades", "binance")
        ours, theirs = multiprocessing.Pipe()
        reader = multiprocessing.get_context("spawn").Process(
            target=read, args=(bootstrap, topic, settings.kafka.partitions, theirs)
        )
        reader.start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as Ray's actors do
            phases, cpu = runner.run(rotate(settings, folder, rotations, steady_s))
        time.sleep(1)
        ours.send("stop")
        rows = ours.recv()
        reader.join(30)
    ids = [np.unique(rows[3][rows[2] == number]) for number in range(len(SYMBOLS))]
    holes = sum(int(of[-1] - of[0] + 1 - len(of)) for of in ids if len(of))
    assert holes == 0, f"{holes} ids are missing"
    took_s = [(end - start) / 1e6 for start, end, rotating in phases if rotating]
    found = []
    for kind, rotating in (("steady", False), ("rotating", True)):
        ms = fresh(rows, phases, rotating)
        p50, p99 = np.percentile(ms, [50, 99])
        found.append(
            {
                "transport": transport,
                "trades_per_s": round(rate),
                "phase": kind,
                "rows": len(ms),
                "p50_ms": round(float(p50), 1),
                "p99_ms": round(float(p99), 1),
                "max_ms": round(float(ms.max()), 1),
                "cpu_share": round(cpu[kind], 2),
                "rotations": rotations if rotating else 0,
                "one_takes_s": round(float(np.median(took_s)), 2) if rotating else 0,
                "ids_missing": holes,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rotations, steady_s = (3, 2.0) if options.quick else (10, 3.0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="k2ray-bench-rotation-") as name:
        folder = Path(name)
        broker = LocalBroker(DataDir(folder / "data"))
        bootstrap = broker.start().bootstrap
        try:
            for transport, rate in (("websockets", 5_000.0), ("websockets", 20_000.0), ("picows", 20_000.0)):
                place = folder / f"run{len(rows)}"
                place.mkdir()
                rows += measure(bootstrap, place, transport, rate, rotations, steady_s)
        finally:
            broker.stop()
    report(
        "rotation",
        rows,
        "Exchange, broker, feed and reader on the same cores. Fresh: from a trade's own time to a consumer's hands;"
        " twice the frames are read and produced while both connections overlap.",
    )


if __name__ == "__main__":
    main()
