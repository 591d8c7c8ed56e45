from __future__ import annotations

import pytest

from actors.lives import Child
from actors.names import ActorName
from actors.pressure import limits_of, supervisor_ends, too_much, worth_replacing
from k2ray.memory import MB
from k2ray.settings import Memory, MemoryLimits, Supervision
from tests.support.actor_world import ActorWorld

FEED, WRITER = "feed:binance:0", "writer:trades"
MEMORY = Memory(feed=MemoryLimits(soft_bytes=300 * MB, hard_bytes=400 * MB))


def using(mb: int, **memory: object) -> dict[str, object]:
    return {"rss_bytes": mb * MB, "memory": memory}


def running(*wanted: str) -> ActorWorld:
    world = ActorWorld(Supervision(replace_pause_s=100, start_timeout_s=20), memory=MEMORY)
    world.reconciler.want(wanted or [FEED, "feed:binance:1", WRITER], 1)
    world.steps(2)
    return world


def child(world: ActorWorld, logical: str = FEED) -> Child:
    return world.reconciler.children[logical]


def test_each_role_has_its_limits_and_a_dummy_has_none() -> None:
    for role in ("feed", "backfill", "writer", "upkeep", "serializer", "supervisor", "api"):
        limits = limits_of(role, Memory())
        assert limits is not None
        assert limits.soft_bytes < limits.hard_bytes
    assert limits_of("window", Memory()) is None, "a number among the settings is no role"
    assert limits_of("tail", Memory()) is None


def test_limits_act_above_and_not_at_them() -> None:
    assert not too_much("feed", using(400), MEMORY)
    assert too_much("feed", using(401), MEMORY) == "memory: 401 MB is over the hard limit of 400 MB"
    assert worth_replacing("feed", using(300), MEMORY) is None
    assert worth_replacing("feed", using(301), MEMORY) == ("memory", "301 MB is over the soft limit of 300 MB")
    assert worth_replacing("feed", {}, MEMORY) is None


@pytest.mark.parametrize(("complete", "score", "found"), [(True, 0.81, True), (True, 0.8, False), (False, 1.0, False)])
def test_a_leak_counts_once_it_fills_the_window(complete: bool, score: float, found: bool) -> None:
    health = using(200, complete=complete, leak_score=score, slope_bytes_per_hour=70 * MB)
    why = worth_replacing("feed", health, MEMORY)
    assert (why is not None) == found
    if why is not None:
        assert why == ("leak", "grows by 70 MB an hour (leak score 0.81 over 0.8)")


def test_over_the_soft_limit_it_is_replaced_and_that_is_no_restart() -> None:
    world = running()
    world.health[ActorName(FEED, 1)] = using(350)
    world.steps(5)
    assert world.names(FEED) == [ActorName(FEED, 2)]
    assert world.drained == [ActorName(FEED, 1)]
    assert not any("memory" in kill.reason for kill in world.killed)
    assert (child(world).restarts, child(world).replacements) == (0, {"memory/done": 1})


def test_over_the_hard_limit_it_is_killed_and_started_anew() -> None:
    world = running()
    world.health[ActorName(FEED, 1)] = using(500)
    world.steps(5)
    assert [kill.reason for kill in world.killed] == ["memory: 500 MB is over the hard limit of 400 MB"]
    assert not world.drained
    assert child(world).restarts_by == {"memory": 1}
    assert world.names(FEED) == [ActorName(FEED, 2)]


def test_a_leak_is_replaced() -> None:
    world = running()
    world.health[ActorName(FEED, 1)] = using(200, complete=True, leak_score=0.95, slope_bytes_per_hour=60 * MB)
    world.steps(5)
    assert child(world).replacements == {"leak/done": 1}
    assert child(world).replacement.detail.startswith("grows by 60 MB an hour")  # type: ignore[union-attr]


def test_only_one_is_replaced_at_a_time_since_two_generations_take_twice_as_much() -> None:
    world = running()
    for number in range(2):
        world.health[ActorName(f"feed:binance:{number}", 1)] = using(350)
        world.health[ActorName(f"feed:binance:{number}", 2)] = {"overlap_s": 3.0}
    most = 0
    for _ in range(60):
        world.step()
        most = max(most, len(world.living))
    assert most == 4
    assert [world.reconciler.children[f"feed:binance:{number}"].replacements.total() for number in range(2)] == [1, 1]


def test_what_does_not_help_is_tried_less_and_less_often() -> None:
    world = running(FEED)
    world.health[FEED] = using(350)  # every generation: the limit is too low for what it does
    counts = []
    for _ in range(5):
        world.steps(400)
        counts.append(child(world).replacements["memory/done"])
    assert counts[0] in {2, 3}
    assert counts[4] <= 6, "pauses of 100, 200, 400, 800 s"


def test_after_a_long_time_of_peace_the_pause_is_short_again() -> None:
    world = running(FEED)
    world.health[FEED] = using(350)
    world.steps(1_000)
    world.health[FEED] = using(100)
    world.steps(3_000)
    before = child(world).replacements["memory/done"]
    world.health[FEED] = using(350)
    world.steps(150)
    assert child(world).replacements["memory/done"] == before + 2


def test_a_failed_replacement_is_tried_again_after_a_pause() -> None:
    world = running(FEED)
    world.health[ActorName(FEED, 1)] = using(350)
    world.health[ActorName(FEED, 2)] = {"ready": False}
    world.steps(90)
    assert child(world).replacements == {"memory/failed": 1}
    assert world.names(FEED) == [ActorName(FEED, 1)]
    world.steps(60)
    assert child(world).replacements == {"memory/failed": 1, "memory/done": 1}
    assert world.names(FEED) == [ActorName(FEED, 3)]


def test_a_new_generation_that_is_over_the_hard_limit_is_given_up() -> None:
    world = running(FEED)
    world.health[ActorName(FEED, 1)] = using(350)
    world.health[ActorName(FEED, 2)] = using(500) | {"ready": False}
    world.steps(10)
    assert world.names(FEED) == [ActorName(FEED, 1)]
    assert "hard limit" in child(world).replacement.why  # type: ignore[union-attr]
    assert child(world).restarts == 0


@pytest.mark.parametrize(
    ("mb", "age_s", "ends"),
    [(50, 9_999, False), (150, 599, False), (150, 600, True), (250, 59, False), (250, 61, True)],
)
def test_a_supervisor_ends_itself_over_its_limits_but_never_when_it_is_young(mb: int, age_s: float, ends: bool) -> None:
    settings = Memory(supervisor=MemoryLimits(soft_bytes=100 * MB, hard_bytes=200 * MB))
    assert bool(supervisor_ends(using(mb), settings, age_s, 600)) == ends


def test_nothing_is_replaced_while_the_system_stops() -> None:
    world = running(FEED)
    world.living[ActorName(FEED, 1)] = True
    world.reconciler.stop()
    world.health[FEED] = using(350)
    world.steps(10)
    assert world.started == [ActorName(FEED, 1)]
    assert world.reconciler.settled
