"""Make before break, memory limits and orders on a real Ray, with small children."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import edge
from actors.names import SUPERVISOR, ActorName
from actors.wanted import Release, Wanted, write_wanted
from k2ray.errors import BadInput
from k2ray.memory import MB
from tests.support.dummies import DUMMY
from tests.support.dummy_system import DummySystem, dummy_system
from tests.support.eventually import eventually
from tests.support.ray_cluster import SmallCluster

pytestmark = pytest.mark.integration

FEED = "feed:binance:0"


@pytest.fixture
def system(ray: SmallCluster, tmp_path: Path) -> Iterator[DummySystem]:
    with dummy_system(ray, tmp_path) as system:
        yield system


def drained(system: DummySystem, name: str) -> bool:
    return (system.layout.root / "drained" / name).exists()


def planned(system: DummySystem, outcome: str) -> dict[str, Any]:
    plan = system.actor(FEED).get("replacement") or {}
    return plan if plan.get("outcome") == outcome else {}


def test_an_operator_replaces_an_actor_with_another_release_and_nothing_is_killed(system: DummySystem) -> None:
    system.up(FEED)
    first = eventually(system.runs(f"{FEED}#1"), "the first runs")
    assert system.ask("order", FEED, "greet", whom="you") == {"said": "hello you", "by": f"{FEED}#1"}
    with pytest.raises(BadInput, match="a feed takes no order 'sing'"):
        system.ask("order", FEED, "sing")
    with pytest.raises(BadInput, match="no actor 'feed:nobody:0' is wanted"):
        system.ask("replace", "feed:nobody:0")

    settings = system.settings.to_json()
    write_wanted(system.layout.run, Wanted(1, settings, {FEED: DUMMY}, releases={"r2": Release(settings)}))
    assert system.ask("replace", FEED, "operator", "r2") == {"generation": 2}
    second = eventually(system.runs(f"{FEED}#2"), "the second took over")
    assert (second["release"], second["restarts"]) == ("r2", 0)
    assert second["pid"] != first["pid"]
    eventually(lambda: drained(system, f"{FEED}#1"), "the first was drained")
    eventually(lambda: not edge.is_actor_process(first["pid"]), "its process is gone")


def test_one_that_never_gets_ready_is_given_up_and_the_old_one_works_on(ray: SmallCluster, tmp_path: Path) -> None:
    with dummy_system(ray, tmp_path, supervision={"start_timeout_s": 8, "crash_loop_restarts": 100}) as system:
        system.up(FEED)

        def runs() -> dict[str, Any]:
            actor = system.actor(FEED)
            return actor if actor.get("state") == "running" else {}

        # On a machine that is very busy the first ones may take longer than this short limit.
        first = eventually(runs, "one runs", timeout_s=90)
        system.tell(FEED, f"unready {first['generation'] + 1}")
        assert system.ask("replace", FEED) == {"generation": first["generation"] + 1}
        plan = eventually(lambda: planned(system, "failed"), "it is given up", timeout_s=60)
        assert plan["why"]
        after = system.actor(FEED)
        assert (after["name"], after["pid"], after["state"]) == (first["name"], first["pid"], "running")
        assert after["restarts"] == first["restarts"], "no crash of anybody"
        assert not drained(system, first["name"])


def test_a_supervisor_killed_during_a_replacement_is_followed_by_one_that_ends_it(system: DummySystem) -> None:
    system.tell(FEED, "unready 2")
    system.up(FEED)
    first = eventually(system.runs(f"{FEED}#1"), "the first runs")
    system.ask("replace", FEED, "operator")
    both = frozenset({ActorName(FEED, 1), ActorName(FEED, 2)})
    eventually(lambda: edge.list_children(system.layout.namespace) == both, "both live")
    supervisor = system.actor(SUPERVISOR)["pid"]
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: system.actor(SUPERVISOR).get("pid") not in {None, supervisor}, "a new supervisor")
    eventually(lambda: planned(system, "under way"), "it knows what was under way")
    # A new supervisor knows who lives before it has heard of them.
    eventually(lambda: system.actor(FEED).get("pid") == first["pid"], "the old one works")
    system.tell(FEED, "")
    eventually(lambda: planned(system, "done"), "it brings it to its end")
    assert system.actor(FEED)["name"] == f"{FEED}#2"
    assert system.actor(FEED)["restarts"] == 0
    eventually(lambda: drained(system, f"{FEED}#1"), "the first was drained")


def limits(soft_mb: int, hard_mb: int, **more: Any) -> dict[str, Any]:
    return {"feed": {"soft_bytes": soft_mb * MB, "hard_bytes": hard_mb * MB}, **more}


def test_a_leaking_actor_is_replaced_at_its_soft_limit(ray: SmallCluster, tmp_path: Path) -> None:
    with dummy_system(ray, tmp_path, memory=limits(400, 4_000)) as system:
        system.up(FEED)
        eventually(system.runs(f"{FEED}#1"), "the first runs")
        system.tell(FEED, "leak 1")
        plan = eventually(lambda: planned(system, "done"), "it was replaced", timeout_s=60)
        assert (plan["reason"], plan["generation"]) == ("memory", 2)
        assert "over the soft limit of 400 MB" in plan["detail"]
        second = system.actor(FEED)
        assert (second["name"], second["restarts"]) == (f"{FEED}#2", 0)
        assert second["rss_bytes"] < 400 * MB
        assert second["memory"]["vms_bytes"] > second["rss_bytes"]
        eventually(lambda: drained(system, f"{FEED}#1"), "the leaking one was drained, not killed")


def test_an_actor_that_grows_steadily_is_replaced_for_its_leak_score(ray: SmallCluster, tmp_path: Path) -> None:
    quick = {"sample_interval_s": 0.1, "window": 30, "warmup_s": 2}
    with dummy_system(ray, tmp_path, memory=limits(4_000, 8_000, **quick)) as system:
        system.tell(FEED, "leak 1")
        system.up(FEED)
        plan = eventually(lambda: planned(system, "done"), "it was replaced", timeout_s=60)
        assert plan["reason"] == "leak"
        assert "leak score" in plan["detail"]
        assert system.actor(FEED)["name"] == f"{FEED}#2"


def test_an_actor_over_its_hard_limit_is_killed_and_started_anew(ray: SmallCluster, tmp_path: Path) -> None:
    with dummy_system(ray, tmp_path, memory=limits(399, 400)) as system:
        system.tell(FEED, "unready 2")  # whatever stands beside it for the soft limit cannot take over
        system.up(FEED)
        first = eventually(system.runs(f"{FEED}#1"), "the first runs")
        system.tell(FEED, "leak 1")

        def followed() -> dict[str, Any]:
            actor = system.actor(FEED)
            return actor if actor.get("restarts", 0) >= 1 else {}

        after = eventually(followed, "it was killed", timeout_s=60)
        assert "over the hard limit of 400 MB" in after["last_reason"]
        eventually(lambda: not edge.is_actor_process(first["pid"]), "its process is gone")
        assert not drained(system, f"{FEED}#1")
