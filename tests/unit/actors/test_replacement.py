from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.lives import Child, Ended, Fault, Replacement
from actors.names import ActorName
from actors.reconciler import Reconciler
from k2ray.errors import BadInput
from k2ray.settings import Supervision
from tests.support.actor_world import ActorWorld

FEED = "feed:binance:0"
OLD, NEW = ActorName(FEED, 1), ActorName(FEED, 2)


def running(*, policy: Supervision | None = None, **health: object) -> ActorWorld:
    world = ActorWorld(policy)
    world.reconciler.want([FEED, "writer:trades"], 1)
    world.health[FEED] = dict(health)
    world.steps(3)
    return world


def child(world: ActorWorld) -> Child:
    return world.reconciler.children[FEED]


def plan(world: ActorWorld) -> Replacement:
    found = child(world).replacement
    assert found is not None
    return found


def test_the_new_generation_works_before_the_old_one_is_drained() -> None:
    world = running()
    world.health[NEW] = {"ready": False}
    assert world.reconciler.replace(FEED, "operator", world.now_s) == 2
    world.steps(5)
    assert world.names(FEED) == [OLD, NEW]
    assert not world.drained
    current = child(world).current
    assert current is not None
    assert (current.name, child(world).state, plan(world).outcome) == (OLD, "running", "under way")

    world.health[NEW] = {"ready": True}
    world.steps(5)
    assert world.names(FEED) == [NEW]
    assert world.drained == [OLD]
    assert plan(world).outcome == "done"
    assert child(world).restarts == 0, "what was planned is no restart"
    assert child(world).replacements == {"operator/done": 1}


def test_it_works_beside_the_old_one_for_as_long_as_it_asks() -> None:
    """Trap 6's cousin: of two connections the new one may be ahead, so the old one goes on for a while."""
    world = running(overlap_s=4.0)
    world.reconciler.replace(FEED, "operator", world.now_s)
    world.steps(4)
    assert world.names(FEED) == [OLD, NEW]
    world.steps(2)
    assert world.names(FEED) == [NEW]


def test_readiness_that_breaks_off_begins_anew() -> None:
    world = running(overlap_s=4.0)
    world.reconciler.replace(FEED, "operator", world.now_s)
    world.steps(3)
    world.health[NEW] = {"ready": False}
    world.steps(2)
    world.health[NEW] = {"ready": True}
    world.steps(3)
    assert world.names(FEED) == [OLD, NEW]
    world.steps(3)
    assert world.names(FEED) == [NEW]


def test_one_that_is_not_ready_in_time_is_given_up_and_the_old_one_works_on() -> None:
    world = running(policy=Supervision(start_timeout_s=20))
    world.health[NEW] = {"ready": False}
    world.reconciler.replace(FEED, "memory", world.now_s)
    world.steps(25)
    assert world.names(FEED) == [OLD]
    assert not world.drained
    assert (plan(world).outcome, plan(world).why) == ("failed", "not ready within 20 s")
    assert (child(world).restarts, child(world).state) == (0, "running")
    assert len(child(world).crashes) == 0


@pytest.mark.parametrize("way", ["dies", "cannot start", "falls silent", "asks an operator"])
def test_one_that_ends_before_it_is_ready_is_given_up(way: str) -> None:
    world = running()
    world.health[NEW] = {"ready": False}
    if way == "cannot start":
        world.starts_fail = {FEED}
    world.reconciler.replace(FEED, "deploy", world.now_s, release="r2")
    world.steps(2)
    if way == "dies":
        world.die(NEW, "ValueError: no such key")
    if way == "falls silent":
        world.living[NEW] = False
    if way == "asks an operator":
        del world.living[NEW]
        world.reconciler.handle(Ended(NEW, "OperatorNeeded: another topic", Fault.OPERATOR), world.now_s)
    world.steps(15)
    assert world.names(FEED) == [OLD]
    assert plan(world).outcome == "failed"
    assert plan(world).why
    assert (child(world).restarts, child(world).state, child(world).release) == (0, "running", "")


def test_if_the_old_one_dies_meanwhile_the_new_one_stays_even_if_it_is_not_ready() -> None:
    world = running(policy=Supervision(start_timeout_s=20))
    world.health[NEW] = {"ready": False}
    world.reconciler.replace(FEED, "operator", world.now_s)
    world.steps(5)
    world.die(OLD)
    world.steps(60)
    assert world.names(FEED) == [NEW]
    assert child(world).restarts_by == {"crash": 1}
    assert plan(world).outcome == "done"


def test_a_release_is_taken_over_by_later_generations_once_it_proved_itself() -> None:
    world = running()
    world.reconciler.replace(FEED, "deploy", world.now_s, release="r2")
    world.steps(5)
    world.die(NEW)
    world.steps(5)
    assert [world.releases[ActorName(FEED, number)] for number in (1, 2, 3)] == ["", "r2", "r2"]


def test_a_release_that_failed_is_not_taken_over() -> None:
    world = running(policy=Supervision(start_timeout_s=5))
    world.health[NEW] = {"ready": False}
    world.reconciler.replace(FEED, "deploy", world.now_s, release="r2")
    world.steps(10)
    world.die(OLD)
    world.steps(5)
    assert [world.releases[ActorName(FEED, number)] for number in (1, 2, 3)] == ["", "r2", ""]


def test_a_failed_child_is_forgiven_and_starts_with_the_release_that_it_is_replaced_with() -> None:
    world = ActorWorld()
    world.starts_fail = {FEED}
    world.reconciler.want([FEED], 1)
    world.steps(120)
    assert child(world).state == "failed"
    world.starts_fail = set()
    world.reconciler.replace(FEED, "deploy", world.now_s, release="r2")
    world.steps(2)
    assert child(world).state == "running"
    assert world.releases[world.names(FEED)[0]] == "r2"


def test_what_cannot_be_replaced_is_refused_with_the_reason() -> None:
    world = running()
    with pytest.raises(BadInput, match="'feed:kraken:0' is wanted"):
        world.reconciler.replace("feed:kraken:0", "operator", world.now_s)
    world.health[NEW] = {"ready": False}
    world.reconciler.replace(FEED, "operator", world.now_s)
    with pytest.raises(BadInput, match=r"a replacement \(operator\) is under way"):
        world.reconciler.replace(FEED, "operator", world.now_s)
    world.reconciler.stop()
    with pytest.raises(BadInput, match="the system stops"):
        world.reconciler.replace("writer:trades", "operator", world.now_s)


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("seconds", [0.25, 0.5, 1, 3, 8])
def test_a_supervisor_killed_during_a_replacement_is_followed_by_one_that_ends_it(seconds: float, ready: bool) -> None:
    world = running(policy=Supervision(start_timeout_s=20))
    world.health[NEW] = {"ready": ready}
    world.reconciler.replace(FEED, "deploy", world.now_s, release="r2")
    world.steps(seconds)
    world.restart_supervisor([FEED, "writer:trades"])
    world.steps(40)
    assert world.names(FEED) == [NEW if ready else OLD]
    assert plan(world).outcome == ("done" if ready else "failed")
    assert child(world).release == ("r2" if ready else "")
    assert child(world).replacements.total() == 1
    assert child(world).restarts == 0


@pytest.mark.parametrize("written_down", ["planned", "started"])
def test_a_supervisor_killed_before_the_new_generation_lived_is_followed_by_one_that_makes_it(
    written_down: str,
) -> None:
    """Found by killing it amid a deployment, which was rolled back for that alone."""
    world = running()
    world.reconciler.replace(FEED, "deploy", world.now_s, release="r2")
    if written_down == "started":
        world.reconciler.decide(world.now_s)
    memory = world.reconciler.remember()
    heir = Reconciler(world.policy, world.chance)
    heir.recall(memory)
    heir.want([FEED, "writer:trades"], 1)
    world.reconciler = heir
    world.steps(10)
    made = NEW if written_down == "planned" else ActorName(FEED, 3)
    assert (plan(world).outcome, plan(world).generation) == ("done", made.generation)
    assert world.names(FEED) == [made]
    assert child(world).release == "r2"
    assert child(world).restarts == 0


def test_stopping_during_a_replacement_drains_both() -> None:
    world = running()
    world.health[NEW] = {"ready": False}
    world.reconciler.replace(FEED, "operator", world.now_s)
    world.steps(2)
    world.reconciler.stop()
    world.steps(5)
    assert sorted(world.drained)[:2] == [OLD, NEW]
    assert world.reconciler.settled


def test_a_crash_right_after_the_handover_does_not_wait_for_the_old_ones_drain() -> None:
    world = running()
    world.reconciler.replace(FEED, "operator", world.now_s)
    while not world.drained:
        world.step()
        world.living[OLD] = False  # it drains for as long as it may
    world.die(NEW)
    world.steps(3)
    assert ActorName(FEED, 3) in world.living


@given(
    seed=st.integers(0, 2**32 - 1),
    troubles=st.lists(
        st.sampled_from(["replace", "die", "die old", "silence", "unready", "ready", "supervisor", "sleep", "wait"]),
        max_size=20,
    ),
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_during_replacements_something_works_on(seed: int, troubles: list[str]) -> None:
    """That nothing is drained for one that is not ready is asserted by the world itself."""
    world = ActorWorld(Supervision(crash_loop_restarts=1000, backoff_max_s=5, start_timeout_s=10), seed)
    world.reconciler.want([FEED], 1)
    world.steps(2)
    for trouble in troubles:
        names = world.names(FEED)
        match trouble:
            case "replace":
                with contextlib.suppress(BadInput):
                    world.reconciler.replace(FEED, "operator", world.now_s)
            case "die" if names:
                world.die(names[-1])
            case "die old" if len(names) > 1:
                world.die(names[0])
            case "silence" if names:
                world.living[names[-1]] = False
            case "unready" if names:
                world.health[names[-1]] = {"ready": False}
            case "ready":
                world.health.clear()
            case "supervisor":
                world.restart_supervisor([FEED])
            case "sleep":
                world.step(world.chance.uniform(0, 60))
        world.steps(world.chance.uniform(0, 3))
    world.health.clear()
    world.steps(90)
    assert len(world.names(FEED)) == 1
    assert child(world).state == "running"
    assert child(world).replacement is None or not plan(world).under_way
