"""The host's clock steps by an hour, both ways: feed and writer go on, no id is lost or doubled, on a real Kafka.

Quotes carry no time of the exchange: their `timestamp` is when they came, and steps along. Trades keep theirs.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import duckdb
import pytest
from pyiceberg.table import Table

from k2ray.lake.catalog import load_table, open_catalog
from k2ray.lake.writer import TableWriter
from k2ray.layout import DataDir
from k2ray.settings import Settings
from k2ray.sim.audit import data_files
from tests.support.feed_world import STREAM_OF, FeedWorld
from tests.support.ids import compare_ids
from tests.support.kafka import TestBroker
from tests.support.sim import start_sim

pytestmark = pytest.mark.integration

HOUR_S = 3600


class SteppedClock:
    """The machine's clocks; somebody sets the wall clock. The monotonic one never steps."""

    def __init__(self) -> None:
        self.step_s = 0

    def now_us(self) -> int:
        return time.time_ns() // 1_000 + self.step_s * 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


class RestlessClock(SteppedClock):
    """Each look at the wall clock finds it set by an hour, to and fro."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = itertools.cycle((0, HOUR_S, -HOUR_S))

    def now_us(self) -> int:
        self.step_s = next(self._steps)
        return super().now_us()


def stored(world: FeedWorld, folder: Path, table_name: str) -> Table:
    """Write all that Kafka holds in many commits, as the writer actor does, while its clock is never the same twice."""
    wanted = json.loads(world.settings.to_json()) | {"data_dir": str(folder), "lake": {"commit": {"max_rows": 300}}}
    settings, layout = Settings.from_json(json.dumps(wanted)), DataDir(folder)
    writer = TableWriter(settings, layout, table_name, world.broker.bootstrap, clock=RestlessClock())
    try:
        assert writer.drain(60)
    finally:
        writer.close()
    table = load_table(open_catalog(settings, layout), settings, table_name)
    assert table is not None
    assert len(table.metadata.snapshots) > 2
    return table


async def test_the_hosts_clock_stepped_by_an_hour_both_ways(broker: TestBroker, tmp_path: Path) -> None:
    with start_sim(tmp_path, rate=600) as sim:
        clock = SteppedClock()
        world = FeedWorld(broker, tmp_path, sim, clock=clock)
        async with world.running():
            for step_s in (0, HOUR_S, -HOUR_S, 0):
                clock.step_s = step_s
                await world.received(500)
                assert world.status.ready, "no timeout follows the wall clock"
        assert world.status.reconnects == 0
        assert sum(world.status.rotations.values()) == 0
        sim.stop()
        assert sim.truth is not None
        for channel in ("trades", "quotes"):
            table = stored(world, tmp_path / "lake", channel)
            # The feed was drained before the exchange stopped: what came after its last row was not for it.
            found = compare_ids(sim.truth, table, STREAM_OF[channel], to_the_end=False)
            assert (found.missing, found.doubled, found.invented) == (0, 0, 0), found
            assert found.stored > 500
            assert spaces(table) == {""}, "ids that go on keep their numbering"
            ahead, behind = hours_off(table)
            if channel == "quotes":
                assert ahead > 100
                assert behind > 100
            else:
                assert (ahead, behind) == (0, 0), "trades have the exchange's time"


def spaces(table: Table) -> set[str]:
    """Return the numberings of a table's rows."""
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT DISTINCT sequence_space FROM read_parquet($files)", {"files": list(data_files(table))}
        ).fetchall()
    return {space for (space,) in rows}


def hours_off(table: Table) -> tuple[int, int]:
    """Return how many rows have a timestamp half an hour or more ahead of now, and behind it."""
    with duckdb.connect() as connection:
        row = connection.execute(
            """SELECT count(*) FILTER (epoch(timestamp) > $now + 1800), count(*) FILTER (epoch(timestamp) < $now - 1800)
            FROM read_parquet($files)""",
            {"files": list(data_files(table)), "now": time.time()},
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])
