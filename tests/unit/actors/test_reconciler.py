from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.lives import Answered, Drain, Ended, Fault, Kill, Listed, Start
from actors.names import ActorName
from actors.reconciler import Reconciler
from k2ray.settings import Supervision
from tests.support.actor_world import ActorWorld

WANTED = ["writer:trades", "feed:binance:0", "feed:binance:1", "upkeep:trades"]


def started(*wanted: str, policy: Supervision | None = None) -> ActorWorld:
    world = ActorWorld(policy)
    world.reconciler.want(wanted or WANTED, 1)
    world.steps(3)
    return world


def test_every_wanted_actor_is_started_once_as_its_first_generation() -> None:
    world = started()
    assert sorted(map(str, world.started)) == sorted(f"{logical}#1" for logical in WANTED)
    assert all(child.state == "running" for child in world.reconciler.children.values())


def test_nothing_is_started_before_ray_said_who_lives() -> None:
    reconciler = Reconciler(Supervision(), random.Random(0))
    reconciler.want(["feed:binance:0"], 1)
    assert reconciler.decide(1.0) == []
    reconciler.handle(Listed(frozenset()), 1.0)
    assert reconciler.decide(1.1) == [Start(ActorName("feed:binance:0", 1))]


def test_a_dead_actor_is_followed_by_its_next_generation_and_the_others_are_left_alone() -> None:
    world = started()
    world.die(ActorName("feed:binance:0", 1), "ActorDiedError")
    world.steps(3)
    assert [str(name) for name in world.started[4:]] == ["feed:binance:0#2"]
    child = world.reconciler.children["feed:binance:0"]
    assert (child.restarts, child.last_reason, child.state) == (1, "ActorDiedError", "running")


def test_the_next_look_comes_as_soon_as_a_start_is_due_and_never_later_than_the_interval() -> None:
    policy = Supervision(interval_s=1, backoff_initial_s=0.5, backoff_max_s=60)
    reconciler = Reconciler(policy, random.Random(1))
    reconciler.want(["feed:binance:0"], 1)
    assert reconciler.rest_s(0.0) == 1.0
    reconciler.handle(Listed(frozenset()), 0.0)
    (start,) = reconciler.decide(0.0)
    reconciler.handle(Ended(start.name, "died"), 0.0)
    rest_s = reconciler.rest_s(0.0)
    assert 0 < rest_s < 0.5
    assert not any(isinstance(one, Start) for one in reconciler.decide(rest_s * 0.9))
    assert any(isinstance(one, Start) for one in reconciler.decide(rest_s)), "no turn was wasted"
    assert reconciler.rest_s(rest_s) == 1.0


def test_a_restarted_supervisor_adopts_the_living_without_disturbing_them() -> None:
    world = started()
    world.restart_supervisor(WANTED)
    world.steps(30)
    assert len(world.started) == 4
    assert not world.killed
    assert not world.drained
    assert sorted(world.attached) == sorted(world.living)


def test_a_restarted_supervisor_counts_generations_on_even_if_the_last_one_is_dead() -> None:
    world = started("feed:binance:0")
    world.living.clear()
    world.restart_supervisor(["feed:binance:0"])
    world.steps(2)
    assert str(world.started[-1]) == "feed:binance:0#2"


def test_a_silent_actor_is_killed_by_its_pid_and_replaced() -> None:
    world = started()
    world.living[ActorName("writer:trades", 1)] = False
    world.steps(9)
    assert not world.killed
    world.steps(3)
    assert [(str(kill.name), kill.pid, kill.reason) for kill in world.killed] == [
        ("writer:trades#1", 1001, "silent for 10 s")
    ]
    assert str(world.started[-1]) == "writer:trades#2"


def test_an_actor_adopted_while_it_is_stopped_is_killed_by_the_pid_that_was_remembered() -> None:
    world = started("writer:trades")
    world.living[ActorName("writer:trades", 1)] = False
    world.restart_supervisor(["writer:trades"])
    world.steps(12)
    assert [(str(kill.name), kill.pid) for kill in world.killed] == [("writer:trades#1", 1001)]


def test_silence_is_not_held_against_actors_while_the_supervisor_itself_was_stopped() -> None:
    world = started()
    world.step(600)
    world.steps(5)
    assert not world.killed


def test_an_actor_whose_health_answers_but_whose_loop_does_not_turn_is_killed() -> None:
    world = started("feed:binance:0")
    name = ActorName("feed:binance:0", 1)
    world.living[name] = False
    health = {"pid": 7, "node": "n", "turn_age_s": 31.0, "turn_limit_s": 30.0}
    world.reconciler.handle(Answered(name, health), world.now_s)
    world.step()
    assert [kill.reason for kill in world.killed] == ["its loop has not turned for 31 s"]


def test_an_actor_that_does_not_come_up_is_killed_and_tried_again() -> None:
    world = ActorWorld(Supervision(start_timeout_s=20))
    world.reconciler.want(["feed:binance:0"], 1)
    world.step()
    world.living[ActorName("feed:binance:0", 1)] = False
    world.steps(22)
    assert world.killed[0].reason == "not up within 20 s"
    assert str(world.started[-1]) == "feed:binance:0#2"


def test_where_every_start_takes_longer_than_allowed_each_has_twice_the_time_until_one_is_up() -> None:
    """On a starved machine actors were killed and begun anew for ever, none got to the end of its start."""
    world = ActorWorld(Supervision(start_timeout_s=20))
    world.reconciler.want(["feed:binance:0"], 1)
    child = world.reconciler.children["feed:binance:0"]
    while len(world.killed) < 5:
        if world.step() and world.started[-1] in world.living:
            world.living[world.started[-1]] = False
    allowed = ["20", "40", "80", "160", "160"]
    assert [kill.reason for kill in world.killed] == [f"not up within {seconds} s" for seconds in allowed]
    world.steps(60)  # no crash loop, in so long a time: another one is started, and this one answers
    assert (child.state, child.late_starts) == ("running", 0)


def test_a_crash_loop_fails_that_actor_and_no_other_and_a_new_up_brings_it_back() -> None:
    world = ActorWorld()
    world.starts_fail = {"feed:binance:0"}
    world.reconciler.want(WANTED, 1)
    world.steps(120)
    child = world.reconciler.children["feed:binance:0"]
    assert child.state == "failed"
    assert child.restarts == 8
    assert "8 crashes within 120 s, the last: RuntimeError: no" in child.last_reason
    assert [world.reconciler.children[logical].state for logical in WANTED].count("running") == 3
    starts = len(world.started)
    world.steps(600)
    assert len(world.started) == starts, "a failed actor is left alone"

    world.starts_fail = set()
    world.reconciler.want(WANTED, 2)
    world.steps(2)
    assert world.reconciler.children["feed:binance:0"].state == "running"


def test_failure_outlives_the_supervisor_until_a_new_up() -> None:
    world = ActorWorld()
    world.starts_fail = {"feed:binance:0"}
    world.reconciler.want(["feed:binance:0"], 1)
    world.steps(120)
    world.restart_supervisor(["feed:binance:0"], epoch=1)
    world.steps(5)
    assert world.reconciler.children["feed:binance:0"].state == "failed"
    world.starts_fail = set()
    world.restart_supervisor(["feed:binance:0"], epoch=2)
    world.steps(5)
    assert world.reconciler.children["feed:binance:0"].state == "running"


def test_crashes_far_apart_never_fail_an_actor() -> None:
    world = started("feed:binance:0")
    for _ in range(30):
        world.die(world.names("feed:binance:0")[0])
        world.steps(60)
    assert world.reconciler.children["feed:binance:0"].state == "running"


def test_what_only_a_person_may_decide_is_not_retried() -> None:
    world = started("writer:trades")
    name = ActorName("writer:trades", 1)
    del world.living[name]
    world.reconciler.handle(Ended(name, "OperatorNeeded: another topic id", Fault.OPERATOR), world.now_s)
    world.steps(60)
    assert len(world.started) == 1
    assert world.reconciler.children["writer:trades"].last_reason == "OperatorNeeded: another topic id"


def test_the_nodes_memory_is_not_held_against_an_actor() -> None:
    world = started("writer:trades")
    for _ in range(20):
        name = world.names("writer:trades")[0]
        del world.living[name]
        world.reconciler.handle(Ended(name, "the node ran out of memory", Fault.NODE), world.now_s)
        world.steps(1)
    assert world.reconciler.children["writer:trades"].state == "running"


def test_restart_delays_grow_and_are_spread() -> None:
    world = ActorWorld(Supervision(crash_loop_restarts=100))
    world.starts_fail = {"feed:binance:0"}
    world.reconciler.want(["feed:binance:0"], 1)
    world.step()
    delays = []
    for _ in range(12):
        child = world.reconciler.children["feed:binance:0"]
        delays.append(child.start_at_s - world.now_s)
        generation = child.generation
        while child.generation == generation:
            world.step()
    assert max(delays[:2]) <= 0.4
    assert max(delays) > 5
    assert max(delays) <= 30
    assert len(set(delays)) == len(delays)


def test_of_two_generations_the_newest_that_answers_stays() -> None:
    world = started("feed:binance:0")
    world.living[ActorName("feed:binance:0", 2)] = True
    world.steps(5)
    assert world.names("feed:binance:0") == [ActorName("feed:binance:0", 2)]
    assert world.drained == [ActorName("feed:binance:0", 1)]
    assert world.reconciler.children["feed:binance:0"].restarts == 0


def test_the_older_generation_stays_while_the_newer_does_not_answer() -> None:
    world = started("feed:binance:0")
    world.living[ActorName("feed:binance:0", 2)] = False
    world.steps(9)
    assert not world.drained
    world.steps(5)
    assert world.names("feed:binance:0") == [ActorName("feed:binance:0", 1)]


def test_an_actor_that_is_not_wanted_any_more_is_drained() -> None:
    world = started()
    world.reconciler.want(WANTED[:3], 2)
    world.steps(3)
    assert world.drained == [ActorName("upkeep:trades", 1)]
    assert world.names("upkeep:trades") == []


def test_stopping_drains_feeds_before_writers_before_upkeep() -> None:
    world = started()
    world.reconciler.stop()
    world.steps(5)
    assert [name.role for name in world.drained] == ["feed", "feed", "writer", "upkeep"]
    assert not world.living
    assert world.reconciler.settled
    assert len(world.started) == 4


def test_an_up_takes_back_a_down_that_was_cut_short() -> None:
    world = started()
    world.reconciler.stop()
    world.step()
    world.reconciler.want(WANTED, 2)
    world.reconciler.stop(False)
    world.steps(5)
    assert sorted(name.logical for name in world.living) == sorted(WANTED)
    assert len(world.living) == 4


def test_stopping_does_not_wait_for_ever_for_an_actor_that_does_not_drain() -> None:
    world = started(policy=Supervision(drain_timeout_s=5))
    world.living[ActorName("feed:binance:0", 1)] = False
    world.reconciler.stop()
    world.steps(8)
    assert "not drained within 5 s" in [kill.reason for kill in world.killed]
    assert world.reconciler.settled


def test_the_process_of_an_ended_run_is_killed() -> None:
    world = started("feed:binance:0")
    name = ActorName("feed:binance:0", 1)
    world.reconciler.handle(Ended(name, "ValueError: x"), world.now_s)
    todo = world.step()
    assert Kill(name, 1001, "n", "ValueError: x") in todo
    assert not any(isinstance(instruction, Drain) for instruction in todo)


@pytest.mark.parametrize("stop_at_the_end", [False, True])
@given(
    seed=st.integers(0, 2**32 - 1),
    troubles=st.lists(
        st.tuples(
            st.sampled_from(["die", "silence", "supervisor", "stray", "fail_starts", "allow_starts", "wait", "sleep"]),
            st.sampled_from(WANTED),
        ),
        max_size=25,
    ),
)
@settings(max_examples=60, deadline=None)
def test_whatever_happened_one_generation_of_each_lives_in_the_end(
    stop_at_the_end: bool, seed: int, troubles: list[tuple[str, str]]
) -> None:
    world = ActorWorld(Supervision(crash_loop_restarts=1000, backoff_max_s=5), seed)
    world.reconciler.want(WANTED, 1)
    for trouble, logical in troubles:
        names = world.names(logical)
        match trouble:
            case "die" if names:
                world.die(names[-1])
            case "silence" if names:
                world.living[names[-1]] = False
            case "supervisor":
                world.restart_supervisor(WANTED)
            case "stray":
                generation = world.reconciler.children[logical].generation + 1
                world.living[ActorName(logical, generation)] = world.chance.random() < 0.5
            case "fail_starts":
                world.starts_fail.add(logical)
            case "allow_starts":
                world.starts_fail.discard(logical)
            case "sleep":
                world.step(world.chance.uniform(0, 60))
        world.steps(world.chance.uniform(0, 3))
    world.starts_fail.clear()
    if stop_at_the_end:
        world.reconciler.stop()
        world.steps(4 * world.policy.drain_timeout_s + 5)
        assert not world.living
        assert world.reconciler.settled
        return
    world.steps(60)
    assert sorted(name.logical for name in world.living) == sorted(WANTED)
    assert all(world.living.values())
    assert all(child.state == "running" for child in world.reconciler.children.values())
