"""A group changes over as one: while it is held, both generations work; one that is given up was never needed."""

from __future__ import annotations

from actors.names import ActorName
from k2ray.memory import MB
from tests.support.actor_world import ActorWorld

FEEDS = ["feed:binance:0", "feed:binance:1"]


def standing() -> ActorWorld:
    world = ActorWorld()
    world.reconciler.want(FEEDS, 1, base="blue")
    world.steps(3)
    assert {world.releases[name] for name in world.living} == {"blue"}
    world.reconciler.want(FEEDS, 1, base="green", runs=dict.fromkeys(FEEDS, "blue"), held=FEEDS)
    for feed in FEEDS:
        world.reconciler.replace(feed, "deploy", world.now_s, release="green")
    return world


def test_both_generations_work_until_they_are_let_go() -> None:
    world = standing()
    world.steps(20)
    assert len(world.living) == 4
    assert not world.drained
    assert {world.releases[ActorName(feed, 2)] for feed in FEEDS} == {"green"}
    world.reconciler.want(FEEDS, 1, base="green")
    world.steps(3)
    assert world.drained == [ActorName(feed, 1) for feed in FEEDS]
    for feed in FEEDS:
        child = world.reconciler.children[feed]
        assert child.replacement is not None
        assert (child.replacement.outcome, child.release) == ("done", "green")


def test_a_restarted_supervisor_still_holds() -> None:
    world = standing()
    world.steps(3)
    world.restart_supervisor(FEEDS)
    world.reconciler.want(FEEDS, 1, base="green", held=FEEDS)
    world.steps(10)
    assert len(world.living) == 4
    assert not world.drained


def test_what_is_given_up_drains_and_the_old_one_was_never_touched() -> None:
    world = standing()
    world.steps(5)
    assert world.reconciler.abandon(FEEDS[0], world.now_s)
    assert not world.reconciler.abandon(FEEDS[0], world.now_s), "only once"
    world.steps(3)
    assert world.names(FEEDS[0]) == [ActorName(FEEDS[0], 1)]
    assert world.drained == [ActorName(FEEDS[0], 2)]
    child = world.reconciler.children[FEEDS[0]]
    assert child.replacement is not None
    assert (child.replacement.outcome, child.release, child.restarts) == ("failed", "blue", 0)
    world.reconciler.replace(FEEDS[0], "deploy", world.now_s, release="green")
    world.steps(3)
    assert world.names(FEEDS[0]) == [ActorName(FEEDS[0], 1), ActorName(FEEDS[0], 3)]


def test_a_replacement_that_was_not_started_yet_is_given_up_too() -> None:
    world = ActorWorld()
    world.reconciler.want(FEEDS, 1, base="blue")
    world.steps(3)
    world.reconciler.replace(FEEDS[0], "deploy", world.now_s, release="green")
    assert world.reconciler.abandon(FEEDS[0], world.now_s)
    world.steps(5)
    assert world.names(FEEDS[0]) == [ActorName(FEEDS[0], 1)]


def test_the_new_one_is_not_given_up_once_the_old_one_died() -> None:
    world = standing()
    world.steps(5)
    world.die(ActorName(FEEDS[0], 1))
    assert not world.reconciler.abandon(FEEDS[0], world.now_s)
    world.steps(5)
    assert world.names(FEEDS[0]) == [ActorName(FEEDS[0], 2)]


def test_a_child_without_a_life_starts_with_the_release_that_is_said() -> None:
    world = ActorWorld()
    world.reconciler.want(FEEDS, 1, base="green", runs={FEEDS[1]: "blue"})
    world.steps(3)
    assert [world.releases[ActorName(feed, 1)] for feed in FEEDS] == ["green", "blue"]
    world.die(ActorName(FEEDS[1], 1))
    world.steps(3)
    assert world.releases[ActorName(FEEDS[1], 2)] == "blue", "what crashes comes back as what it was"


def test_memory_is_relieved_elsewhere_while_a_dead_deployment_holds_a_group() -> None:
    world = standing()
    world.reconciler.want([*FEEDS, "writer:trades"], 1, base="green", runs=dict.fromkeys(FEEDS, "blue"), held=FEEDS)
    world.health[ActorName("writer:trades", 1)] = {"rss_bytes": 2_000 * MB}
    world.steps(10)
    assert world.names("writer:trades") == [ActorName("writer:trades", 2)]
    assert world.reconciler.children["writer:trades"].replacements == {"memory/done": 1}
    assert len([name for name in world.living if name.logical in FEEDS]) == 4
