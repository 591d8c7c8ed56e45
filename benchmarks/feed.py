"""A feed by itself: TLS socket -> frames -> Arrow -> Kafka, both transports; CPU seconds of the feed's process alone.

python benchmarks/feed.py [--quick] [--rate TRADES_PER_SECOND]

This process is the feed; the simulated exchange and the broker are processes of their own. `offered` is what the
exchange is asked for: at the highest rates the cores are full and it gives the rest up.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.lone_feed import SYMBOLS, feed_settings
from benchmarks.report import report
from k2ray.feed.session import FeedSession
from k2ray.layout import DataDir
from k2ray.log.broker import LocalBroker
from k2ray.log.producer import LogProducer
from k2ray.log.spool import Spool
from k2ray.settings import Settings
from k2ray.sim.process import running_sim

STREAMS = {"trades": "trade", "quotes": "bookTicker"}


async def feed(settings: Settings, folder: Path, seconds: float) -> dict[str, float]:
    """Run the feed; return rates between a second after its first row and `seconds` later."""
    sys.setswitchinterval(0.0005)  # as the feed's actor does
    bootstrap = settings.kafka.bootstrap_servers
    assert bootstrap is not None
    spool = Spool(folder / "spool", 2**30)
    producer = LogProducer(bootstrap, client_id="bench-feed", spool=spool, settings=settings.kafka)
    session = FeedSession(settings, "binance", 0, producer)
    run = asyncio.create_task(session.run())
    while session.status().rows == 0:  # noqa: ASYNC110 - the session tells nobody
        await asyncio.sleep(0.01)
    await asyncio.sleep(1)
    rows, cpu_s, began_s = session.status().rows, time.process_time(), time.monotonic()
    loop_s = time.thread_time()
    longest_s = 0.0
    while (now_s := time.monotonic()) - began_s < seconds:
        await asyncio.sleep(0.02)
        longest_s = max(longest_s, time.monotonic() - now_s - 0.02)
    rows, cpu_s = session.status().rows - rows, time.process_time() - cpu_s
    loop_s = time.thread_time() - loop_s
    wall_s = time.monotonic() - began_s
    rss = psutil.Process().memory_info().rss
    await session.drain()
    await run
    stats = producer.stats()
    status = session.status()
    assert status.dead_letters == 0, "the exchange sends no bad frame here"
    assert stats.rows_delivered == status.rows, f"{stats}"
    await asyncio.to_thread(producer.close, 5)
    return {
        "rows_per_s": round(rows / wall_s),
        "rows_per_cpu_second": round(rows / cpu_s),
        "cpu_share": round(cpu_s / wall_s, 2),
        "in_the_loop": round(loop_s / cpu_s, 2),  # the rest is librdkafka's threads
        "longest_turn_ms": round(longest_s * 1000, 1),
        "rss_mb": round(rss / 1e6),
        "spooled": stats.failures,
        "reconnects": status.reconnects,
    }


def measure(
    bootstrap: str, folder: Path, transport: str, channels: list[str], rate: float, seconds: float
) -> dict[str, Any]:
    arguments = ["--channels", ",".join(STREAMS[channel] for channel in channels)]
    with running_sim(folder, rate=rate, symbols=SYMBOLS, arguments=arguments) as sim:
        settings = feed_settings(sim, bootstrap, folder, transport, channels)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as Ray's actors do
            found = runner.run(feed(settings, folder, seconds))
    return {"transport": transport, "channels": "+".join(channels), "offered": round(rate * len(channels)), **found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rate", type=float, action="append")
    options = parser.parse_args()
    seconds = 3.0 if options.quick else 10.0
    rates = options.rate or ([100_000.0] if options.quick else [20_000.0, 100_000.0, 250_000.0])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="k2ray-bench-feed-") as name:
        folder = Path(name)
        broker = LocalBroker(DataDir(folder / "data"))
        bootstrap = broker.start().bootstrap
        try:
            for channels in (["trades"], ["trades", "quotes"]):
                for transport in ("websockets", "picows"):
                    for rate in rates:
                        place = folder / f"run{len(rows)}"
                        place.mkdir()
                        rows.append(measure(bootstrap, place, transport, channels, rate / len(channels), seconds))
        finally:
            broker.stop()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report(
        "feed",
        rows,
        f"Exchange, broker and feed on the same cores. Peak RSS of the feed's process {peak_mb:.0f} MB. Aims: 190,000"
        " trades per CPU second with websockets, 500,000 with picows; RSS below 250 MB.",
    )


if __name__ == "__main__":
    main()
