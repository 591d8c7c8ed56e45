"""Two copies of a feed, rotations by order and by notice, in the whole system under load; ids are compared."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import edge
from actors.names import SUPERVISOR
from k2ray.exchanges.limits import SHARED_PART
from tests.support.arena import PATIENCE_S, Arena, standing_arena
from tests.support.eventually import eventually
from tests.support.ray_cluster import SmallCluster
from tests.support.sim import start_sim

pytestmark = pytest.mark.timeout(900)

RATE = 1_000
BUSY = 5_000

FIRST, SECOND = "feed:binance:0", "feed:binance:0:2"


@pytest.fixture(scope="module")
def arena(ray: SmallCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("connections")
    with (
        start_sim(folder, rate=RATE) as sim,
        standing_arena(ray, folder / "data", sim, more={"redundancy": 2}) as arena,
    ):
        arena.more_commits("trades", rows=RATE)
        yield arena


def delivering(arena: Arena, logical: str) -> dict[str, Any]:
    """Wait until a feed's connection delivers, and return its status."""

    def look() -> dict[str, Any]:
        actor = arena.actor(logical)
        return actor if actor.get("ready") and actor["detail"]["connection"] == "open" else {}

    return eventually(look, f"{logical} delivers", timeout_s=PATIENCE_S)


def order_rotation(arena: Arena, logical: str) -> None:
    """Ask the supervisor for a rotation and wait until it is complete."""
    before = delivering(arena, logical)["detail"]["rotations"]["operator"]
    supervisor = edge.find(SUPERVISOR, arena.layout.namespace)
    answer = edge.ask(supervisor, "order", logical, "rotate", timeout_s=30)
    assert answer["answer"] == "rotating"
    eventually(
        lambda: delivering(arena, logical)["detail"]["rotations"]["operator"] > before,
        f"{logical} has rotated",
        timeout_s=PATIENCE_S,
    )


def nothing_is_missing(arena: Arena) -> None:
    """Every id that the exchange made between the first and the last in Kafka is in the table, once."""
    arena.more_commits("trades", rows=RATE // 2)
    for verdict in arena.verify():
        print(verdict)  # noqa: T201  shown with -s and on failure
        assert verdict.in_kafka > 0
        assert verdict.exact, verdict
        assert verdict.never_produced == 0, verdict


@pytest.mark.chaos
def test_both_copies_of_a_feed_killed_in_turn_lose_nothing(arena: Arena) -> None:
    for victim, other in ((FIRST, SECOND), (SECOND, FIRST)):
        delivering(arena, other)
        killed = delivering(arena, victim)
        os.kill(killed["pid"], signal.SIGKILL)
        arena.running(victim, after=killed["generation"])
        delivering(arena, victim)
    nothing_is_missing(arena)


@pytest.mark.chaos_full
def test_rotations_by_order_and_by_notice_lose_nothing_and_a_new_supervisor_counts_on(arena: Arena) -> None:
    order_rotation(arena, FIRST)
    arena.sim.fault("server_shutdown", seconds=20)
    for logical in (FIRST, SECOND):
        eventually(
            lambda logical=logical: delivering(arena, logical)["detail"]["rotations"]["shutdown"] > 0,  # type: ignore[misc]
            f"{logical} has moved",
            timeout_s=PATIENCE_S,
        )
    left = connects_left(arena)
    allowed = int(arena.settings.exchanges.enabled()["binance"].limits.connects * SHARED_PART)
    assert left <= allowed - 5, (
        "each of the feeds' connects was granted by the supervisor: two at first, three rotations"
    )
    supervisor = arena.actor(SUPERVISOR)
    os.kill(supervisor["pid"], signal.SIGKILL)
    eventually(lambda: arena.actor(SUPERVISOR).get("pid") not in (None, supervisor["pid"]), "a new supervisor")
    assert eventually(lambda: connects_left(arena), "it answers", timeout_s=30) <= left, "nothing was forgotten"
    nothing_is_missing(arena)


def connects_left(arena: Arena) -> int:
    budgets = edge.ask(edge.find(SUPERVISOR, arena.layout.namespace), "budgets", timeout_s=30)
    return int(budgets["binance"]["connects"]["left"])


@pytest.mark.chaos_full
def test_twenty_rotations_of_the_only_connection_at_5000_trades_a_second_lose_nothing(
    ray: SmallCluster, tmp_path: Path
) -> None:
    """Trap 6, with nothing that could hide a hole: one copy, the real overlap, through to the table."""
    with start_sim(tmp_path, rate=BUSY) as sim, standing_arena(ray, tmp_path / "data", sim) as arena:
        arena.more_commits("trades", rows=BUSY)
        for _ in range(20):
            order_rotation(arena, FIRST)
        assert delivering(arena, FIRST)["detail"]["reconnects"] == 0
        nothing_is_missing(arena)
