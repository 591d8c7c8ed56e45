"""The supervisor on a real Ray, with small children: what RAY.md says was tried by hand, held by tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import edge
from actors.lives import Fault
from actors.names import SUPERVISOR, ActorName
from actors.supervisor import system_status
from k2ray.errors import ActorNotMade, SupervisorUnavailable
from tests.support.dummies import DUMMY
from tests.support.dummy_system import DummySystem, dummy_system
from tests.support.eventually import eventually
from tests.support.ray_cluster import SmallCluster

pytestmark = pytest.mark.integration


@pytest.fixture
def system(ray: SmallCluster, tmp_path: Path) -> Iterator[DummySystem]:
    with dummy_system(ray, tmp_path) as system:
        yield system


def test_children_are_started_restarted_and_left_alone(system: DummySystem) -> None:
    names = ["feed:binance:0", "writer:trades", "upkeep:trades"]
    system.up(*names)
    first = {name: eventually(system.runs(f"{name}#1"), f"{name} runs") for name in names}
    assert len({actor["pid"] for actor in first.values()}) == 3
    assert first["feed:binance:0"]["rss_bytes"] > 10_000_000
    eventually(lambda: system.actor("feed:binance:0")["detail"]["ticks"] > 0, "its loop turns")

    started_s = time.monotonic()
    os.kill(first["feed:binance:0"]["pid"], signal.SIGKILL)
    second = eventually(system.runs("feed:binance:0#2"), "the killed feed's successor runs")
    assert time.monotonic() - started_s < 15
    assert second["restarts"] == 1
    assert "died" in second["last_reason"]

    system.tell("upkeep:trades", "raise")
    raised = eventually(lambda: self_after(system, "upkeep:trades", 1), "the failure is seen")
    assert raised["last_reason"] == "RuntimeError: as told"
    system.tell("upkeep:trades", "")
    eventually(lambda: system.actor("upkeep:trades").get("state") == "running", "upkeep is back")
    assert system.actor("writer:trades")["pid"] == first["writer:trades"]["pid"], "the others were left alone"
    assert system.actor("writer:trades")["restarts"] == 0


def self_after(system: DummySystem, logical: str, restarts: int) -> dict[str, Any]:
    actor = system.actor(logical)
    return actor if actor.get("restarts", 0) >= restarts else {}


def test_a_killed_supervisor_comes_back_and_adopts_its_children(system: DummySystem) -> None:
    names = [f"feed:binance:{index}" for index in range(3)]
    system.up(*names)
    before = {name: eventually(system.runs(f"{name}#1"), f"{name} runs") for name in names}
    supervisor = system.actor(SUPERVISOR)
    os.kill(supervisor["pid"], signal.SIGKILL)

    def reborn() -> bool:
        actor = system.actor(SUPERVISOR)
        return actor.get("pid") not in {None, supervisor["pid"]}

    eventually(reborn, "Ray restarts the supervisor")
    after = {name: eventually(system.runs(f"{name}#1"), f"{name} was adopted") for name in names}
    for name in names:
        assert after[name]["pid"] == before[name]["pid"]
        assert after[name]["detail"]["ticks"] >= before[name]["detail"]["ticks"], "its run() went on"
    # The adopted run() is awaited anew: an end of it is noticed.
    os.kill(after[names[0]]["pid"], signal.SIGKILL)
    eventually(system.runs(f"{names[0]}#2"), "an adopted child is replaced")
    assert system.actor(SUPERVISOR)["restarts"] == 1


@pytest.mark.parametrize("way", ["stopped", "terminated", "blocked"])
def test_an_actor_that_went_silent_is_killed_and_replaced(system: DummySystem, way: str) -> None:
    """Trap 8's cousin: an actor inside run() that gets SIGTERM becomes deaf but works on, until it is killed."""
    system.up("writer:trades")
    first = eventually(system.runs("writer:trades#1"), "the writer runs")
    if way == "blocked":
        system.tell("writer:trades", "block")
    else:
        os.kill(first["pid"], signal.SIGSTOP if way == "stopped" else signal.SIGTERM)
    time.sleep(0.3)
    if way == "blocked":
        system.tell("writer:trades", "")
    second = eventually(system.runs("writer:trades#2"), "a successor runs", timeout_s=40)
    assert "silent for" in second["last_reason"] or "has not turned" in second["last_reason"]
    eventually(lambda: not edge.is_actor_process(first["pid"]), "the silent process is gone")


def test_a_crash_loop_is_failed_and_up_brings_it_back(system: DummySystem) -> None:
    system.tell("feed:binance:0", "raise")
    system.up("feed:binance:0", "writer:trades")
    failed = eventually(
        lambda: a if (a := system.actor("feed:binance:0")).get("state") == "failed" else {}, "it is failed"
    )
    assert failed["restarts"] == 3
    assert "as told" in failed["last_reason"]
    assert system.actor("writer:trades")["restarts"] == 0
    system.tell("feed:binance:0", "")
    system.up("feed:binance:0", "writer:trades")
    eventually(lambda: system.actor("feed:binance:0").get("state") == "running", "a new epoch brings it back")


def test_a_supervisor_that_cannot_be_made_says_why(ray: SmallCluster, tmp_path: Path) -> None:
    """A deployment that has made it twice goes back at once: nobody supervises meanwhile."""
    (tmp_path / "file").touch()
    namespace = f"unmade-{os.getpid()}"
    unmade = edge.start_supervisor(namespace, str(tmp_path / "file"))
    with pytest.raises(ActorNotMade, match=r"cannot be made: (NotADirectory|FileExists)Error.*file"):
        edge.ask(unmade, "status", timeout_s=60)
    edge.kill(SUPERVISOR, namespace, None, None)


def test_an_actor_whose_node_is_lost_before_it_is_made_is_no_crash(
    ray: SmallCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "preferred_node", lambda *_: "ab" * 28)
    namespace = f"unplaced-{os.getpid()}"
    unplaced = edge.start_child(ActorName("feed:binance:0", 1), DUMMY, ray.settings(tmp_path).to_json(), namespace)
    with pytest.raises(edge.RAY_ERRORS) as caught:
        edge.ask(unplaced, "health", timeout_s=60)
    assert edge.why_ended(caught.value) == ("it could not be placed: its node was lost before it was made", Fault.NODE)


def test_an_operators_question_is_failed_at_once(system: DummySystem) -> None:
    system.tell("writer:trades", "operator")
    system.up("writer:trades")
    failed = eventually(
        lambda: a if (a := system.actor("writer:trades")).get("state") == "failed" else {}, "it is failed"
    )
    assert (failed["restarts"], failed["last_reason"]) == (1, "OperatorNeeded: another topic id")


def test_stopping_drains_stage_by_stage_while_idle_and_never_waits_for_ever(system: DummySystem) -> None:
    """Trap 8: SIGTERM was ignored while idle; a drain ends promptly with nothing to do."""
    system.up("feed:binance:0", "writer:trades", "upkeep:trades")
    for name in ("feed:binance:0", "writer:trades", "upkeep:trades"):
        eventually(system.runs(f"{name}#1"), f"{name} runs")
    started_s = time.monotonic()
    system.stop()
    eventually(lambda: system.status()["settled"], "everything drained")
    assert time.monotonic() - started_s < 4, "idle actors drain at once, not at their deadlines"
    drained = system.layout.root / "drained"
    when = [float((drained / f"{name}#1").read_text()) for name in ("feed:binance:0", "writer:trades", "upkeep:trades")]
    assert when == sorted(when)


def test_an_actor_that_does_not_drain_is_killed_at_its_deadline(system: DummySystem) -> None:
    system.tell("feed:binance:0", "deaf to drain")
    system.up("feed:binance:0", "writer:trades")
    eventually(system.runs("feed:binance:0#1"), "the feed runs")
    eventually(system.runs("writer:trades#1"), "the writer runs")
    system.stop()
    eventually(lambda: system.status()["settled"], "everything ended")
    assert (system.layout.root / "drained" / "writer:trades#1").exists()
    assert not (system.layout.root / "drained" / "feed:binance:0#1").exists()


def test_two_generations_left_by_a_crash_become_one(system: DummySystem) -> None:
    system.up("feed:binance:0")
    eventually(system.runs("feed:binance:0#1"), "the first runs")
    from actors.names import ActorName

    namespace = system.layout.namespace
    second = edge.start_child(ActorName("feed:binance:0", 2), DUMMY, system.settings.to_json(), namespace)
    eventually(system.runs("feed:binance:0#2"), "the newest stays")
    eventually(
        lambda: edge.list_children(namespace) == frozenset({ActorName("feed:binance:0", 2)}), "the older was drained"
    )
    assert (system.layout.root / "drained" / "feed:binance:0#1").exists()
    del second


def test_a_missing_supervisor_is_named(ray: SmallCluster) -> None:
    with pytest.raises(SupervisorUnavailable, match="supervisor"):
        system_status("k2ray-of-nobody", 2)
