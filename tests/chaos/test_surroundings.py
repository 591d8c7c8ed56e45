"""What actors lean on fails under load: Kafka is away for long, the catalog is locked, the memory of a feed fills.

Nobody dies of it and nothing is missing afterwards: what the exchange sent is in Kafka and in the table, once.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator

import pytest

from actors import edge
from actors.names import wanted_actors
from actors.wanted import Wanted, write_wanted
from tests.support.arena import Arena, broker_pid, standing_arena
from tests.support.eventually import eventually
from tests.support.leaking import LEAKING_FEED
from tests.support.ray_cluster import SmallCluster
from tests.support.sim import start_sim

pytestmark = [pytest.mark.chaos_full, pytest.mark.timeout(500)]

RATE = 2_000
SPOOLED_BYTES = 500_000
"""Several seconds of trades at this rate: more than a hiccup."""

FEED, WRITER = "feed:binance:0", "writer:trades"


@pytest.fixture(scope="module")
def arena(ray: SmallCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("surroundings")
    with start_sim(folder, rate=RATE) as sim, standing_arena(ray, folder / "data", sim) as arena:
        arena.more_commits("trades", rows=RATE)
        yield arena


def nothing_is_missing(arena: Arena) -> None:
    """Every id that the exchange made between the first and the last in Kafka is in the table, once."""
    arena.more_commits("trades", rows=RATE)
    for verdict in arena.verify():
        print(verdict)  # noqa: T201  shown with -s and on failure
        assert verdict.in_kafka > 0
        assert verdict.exact, verdict
        assert verdict.never_produced == 0, verdict


@pytest.mark.parametrize("ends_by", [signal.SIGCONT, signal.SIGKILL], ids=["comes back", "is killed"])
def test_a_broker_that_is_away_for_longer_than_feeds_can_wait_costs_nothing(
    arena: Arena, ends_by: signal.Signals
) -> None:
    """Feeds spool; what the broker had taken without saying so comes twice, and is stored once."""
    before = {logical: arena.running(logical) for logical in (FEED, WRITER)}
    pid = broker_pid(arena)
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(
            lambda: arena.actor(FEED).get("detail", {}).get("spool_bytes", 0) > SPOOLED_BYTES, "it spools", timeout_s=50
        )
    finally:
        os.kill(pid, ends_by)
    eventually(lambda: arena.actor(FEED)["detail"]["spool_bytes"] == 0, "the spool is replayed", timeout_s=120)
    after = {logical: arena.running(logical) for logical in (FEED, WRITER)}
    assert after[FEED]["detail"]["shed_rows"] == 0
    assert {name: actor["pid"] for name, actor in after.items()} == {
        name: actor["pid"] for name, actor in before.items()
    }, "nobody dies of it"
    nothing_is_missing(arena)


def test_a_catalog_that_is_locked_under_load_costs_freshness_and_nothing_else(arena: Arena) -> None:
    before = arena.running(WRITER)
    other = sqlite3.connect(arena.layout.catalog, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        eventually(
            lambda: "locked" in str(arena.actor(WRITER).get("detail", {}).get("trouble")),
            "the writer says who is to be ended",
            timeout_s=150,
        )
    finally:
        other.execute("ROLLBACK")
        other.close()
    eventually(lambda: not arena.actor(WRITER)["detail"]["trouble"], "it goes on by itself", timeout_s=120)
    after = arena.running(WRITER)
    assert (after["pid"], after["restarts"]) == (before["pid"], before["restarts"])
    nothing_is_missing(arena)


def test_a_feed_that_leaks_is_replaced_for_its_memory_and_misses_nothing(arena: Arena) -> None:
    actors = {name: edge.CHILD_CLASSES[name.split(":")[0]] for name in wanted_actors(arena.settings)}
    before = arena.running(FEED)

    def wanted(feed: str) -> None:
        write_wanted(arena.layout.run, Wanted(1, arena.settings.to_json(), {**actors, FEED: feed}, local_broker=True))

    wanted(LEAKING_FEED)
    leaking = arena.replace(FEED)
    arena.running(FEED, after=leaking - 1)
    wanted(actors[FEED])
    after = arena.running(FEED, after=leaking)
    plan = eventually(
        lambda: plan if (plan := arena.actor(FEED)["replacement"])["outcome"] == "done" else {}, "it is replaced"
    )
    assert (plan["reason"], plan["generation"]) == ("memory", leaking + 1)
    assert "over the soft limit of 500 MB" in plan["detail"]
    assert after["restarts"] == before["restarts"], "replaced, not restarted"
    nothing_is_missing(arena)
