"""SIGTERM to a busy system in the foreground, as a container's end sends it: what was received is in the table."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from k2ray.lake.catalog import load_table, open_catalog
from k2ray.lake.progress import committed_progress
from k2ray.log.broker import LocalBroker
from k2ray.log.consumer import LogReader
from k2ray.log.topics import table_topics
from tests.support.eventually import eventually
from tests.support.ids import compare_ids
from tests.support.sim import start_sim
from tests.support.system import System, a_system

pytestmark = [pytest.mark.chaos_full, pytest.mark.timeout(900)]

RATE = 3_000
POLICY: dict[str, Any] = {"backfill": {"enabled": False}, "supervision": {"start_timeout_s": 180}}


def test_sigterm_while_busy_stores_all_that_was_received(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """Trap 8: a stop signal was ignored. Backfill is off: nothing is fetched that was not received."""
    (tmp_path / "sim").mkdir()
    with (
        start_sim(tmp_path / "sim", rate=RATE) as sim,
        a_system(tmp_path / "system", sim, free_port(), **POLICY) as system,
        system.popen("up", "--foreground") as process,
    ):
        started = eventually(
            lambda: process.poll() is not None or (system.layout.run / "up.json").exists(), "it is up", timeout_s=600
        )
        assert started
        assert process.poll() is None, process.communicate()
        eventually(lambda: stored(system, "trades") > 2 * RATE, "it is busy", timeout_s=120)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        assert "Drain actors: drained" in out, "nobody was killed at a deadline"
        assert not system.processes()
        sim.stop()
        assert sim.truth is not None
        for name, stream in (("trades", "trade"), ("quotes", "bookTicker")):
            table = load_table(open_catalog(system.settings, system.layout), system.settings, name)
            assert table is not None
            found = compare_ids(sim.truth, table, stream, to_the_end=False)
            print(name, found)  # noqa: T201  shown with -s and on failure
            assert (found.missing, found.doubled, found.invented) == (0, 0, 0), found
            assert found.stored > RATE
        assert not list(system.layout.spool.rglob("*.arrow")), "Kafka took everything"
        assert uncommitted(system) == {}, "and the table has all that Kafka took"


def stored(system: System, name: str) -> int:
    """Return how many rows a table holds."""
    table = load_table(open_catalog(system.settings, system.layout), system.settings, name)
    snapshot = table.current_snapshot() if table is not None else None
    return int(snapshot.summary["total-records"]) if snapshot is not None and snapshot.summary is not None else 0


def uncommitted(system: System) -> dict[tuple[str, int], int]:
    """Start Kafka alone; return partition -> records that no commit names."""
    broker = LocalBroker(system.layout)
    reader = LogReader(broker.start().bootstrap)
    left: dict[tuple[str, int], int] = {}
    try:
        for name in ("trades", "quotes"):
            table = load_table(open_catalog(system.settings, system.layout), system.settings, name)
            assert table is not None
            progress = committed_progress(table.metadata)
            assert progress is not None
            for topic in table_topics(system.settings, name):
                for partition in range(system.settings.kafka.partitions):
                    key = (topic, partition)
                    end = reader.watermarks(key)[1]
                    at = progress.offsets.get(key)
                    if end != (at.next if at is not None else 0):
                        left[key] = end - (at.next if at is not None else 0)
    finally:
        reader.close()
        broker.stop()
    return left
