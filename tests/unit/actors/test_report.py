from __future__ import annotations

from prometheus_client import REGISTRY

from actors.names import ActorName
from actors.report import count, count_supervisor, describe
from actors.sampling import MemoryReport
from actors.wanted import Release, Wanted
from k2ray.settings import Memory
from tests.support.actor_world import ActorWorld

WANTED = Wanted(1, "{}", release="r1")
OWN = MemoryReport(100, 200, 0)

CONTRACT = {
    "name",
    "role",
    "generation",
    "state",
    "pid",
    "restarts",
    "restarts_by",
    "last_reason",
    "rss_bytes",
    "rate",
    "lag_trades",
    "lag_s",
    "data_age_s",
    "ready",
    "release",
    "replacement",
    "memory",
}


def test_the_picture_keeps_its_contract() -> None:
    world = ActorWorld()
    world.starts_fail = {"feed:binance:0"}
    world.reconciler.want(["writer:trades", "feed:binance:0"], 1)
    world.steps(120)
    picture = describe(world.reconciler, None, births=2, wanted=WANTED, own=OWN)
    assert {"level", "actors", "gaps", "broker", "release", "stopping", "settled"} == picture.keys()
    assert all(actor.keys() == CONTRACT | {"detail"} for actor in picture["actors"])
    states = {actor["name"]: actor["state"] for actor in picture["actors"]}
    assert states == {"supervisor": "running", "writer:trades#1": "running", "feed:binance:0#8": "failed"}
    assert picture["actors"][0]["restarts"] == 1


def test_gaps_of_all_writers_are_shown_once_and_not_in_the_details() -> None:
    world = ActorWorld()
    world.reconciler.want(["writer:trades"], 1)
    world.steps(2)
    gap = {"exchange": "binance", "symbol": "BTCUSDT", "sequence_space": "", "first_id": 5, "last_id": 9}
    world.reconciler.children["writer:trades"].lives[1].health = {"gaps": [gap], "commits": 3}
    picture = describe(world.reconciler, None, births=1, wanted=WANTED, own=OWN)
    assert picture["gaps"] == [gap]
    assert picture["actors"][1]["detail"] == {"commits": 3}


def test_every_metric_of_actors_moves() -> None:
    world = ActorWorld()
    world.starts_fail = {"feed:binance:9"}
    world.reconciler.want(["writer:moves", "feed:binance:9"], 1)
    world.steps(120)
    count(world.reconciler, Memory())
    count_supervisor(3, Memory())

    def value(metric: str, name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(metric, {"actor": name, **labels})

    assert (value("k2ray_actor_up", "writer:moves"), value("k2ray_actor_up", "feed:binance:9")) == (1, 0)
    assert (value("k2ray_actor_failed", "writer:moves"), value("k2ray_actor_failed", "feed:binance:9")) == (0, 1)
    assert value("k2ray_actor_restarts", "feed:binance:9", reason="crash") == 8
    assert value("k2ray_actor_restarts", "feed:binance:9", reason="memory") == 0
    assert value("k2ray_actor_restarts", "supervisor", reason="crash") == 2
    assert value("k2ray_actor_memory_limit_bytes", "writer:moves", limit="soft") == 1_500_000_000
    assert value("k2ray_actor_memory_limit_bytes", "supervisor", limit="hard") == 1_000_000_000
    count(world.reconciler, Memory(), [{"name": "api:7", "pid": 5, "rss_bytes": 1}])
    assert value("k2ray_actor_memory_limit_bytes", "api:7", limit="hard") == 3_500_000_000

    world.health[ActorName("writer:moves", 2)] = {"ready": False}
    world.reconciler.replace("writer:moves", "operator", world.now_s)
    world.steps(2)
    count(world.reconciler, Memory())
    assert value("k2ray_actor_replacing", "writer:moves") == 1
    assert value("k2ray_actor_up", "writer:moves") == 1, "the old one works meanwhile"
    world.health.clear()
    world.steps(3)
    count(world.reconciler, Memory())
    assert value("k2ray_actor_replacing", "writer:moves") == 0
    assert value("k2ray_actor_replacements", "writer:moves", reason="operator", outcome="done") == 1
    assert value("k2ray_actor_replacements", "writer:moves", reason="operator", outcome="failed") == 0
    world.die(ActorName("writer:moves", 2))
    count(world.reconciler, Memory())
    assert value("k2ray_actor_up", "writer:moves") == 0


def test_an_actor_that_was_taken_away_on_purpose_was_said_to_be_down_for_ever() -> None:
    """`k2ray deploy` with fewer connections: its last state, 0 while it drained, stayed; so did an alert on it."""
    world = ActorWorld()
    world.starts_fail = {"feed:gone:2"}
    world.reconciler.want(["feed:gone:0", "feed:gone:1", "feed:gone:2"], 1)
    world.steps(120)
    count(world.reconciler, Memory())
    world.reconciler.want(["feed:gone:0"], 1)
    world.steps(2)
    count(world.reconciler, Memory())
    world.die(ActorName("feed:gone:1", 1))
    world.steps(2)
    count(world.reconciler, Memory())
    shown = {
        sample.labels["actor"]
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.labels.get("actor", "").startswith("feed:gone:")
    }
    assert shown == {"feed:gone:0"}
    world.reconciler.want(["feed:gone:0", "feed:gone:1"], 2)
    world.steps(3)
    count(world.reconciler, Memory())
    assert REGISTRY.get_sample_value("k2ray_actor_up", {"actor": "feed:gone:1"}) == 1, "wanted again"


def test_while_a_new_generation_proves_itself_the_old_one_is_shown() -> None:
    world = ActorWorld()
    world.reconciler.want(["writer:trades"], 1)
    world.steps(2)
    world.health[ActorName("writer:trades", 2)] = {"ready": False}
    world.reconciler.replace("writer:trades", "deploy", world.now_s, release="r2")
    world.steps(2)
    wanted = Wanted(1, "{}", release="r1", releases={"r2": Release("{}")})
    shown = describe(world.reconciler, None, births=1, wanted=wanted, own=OWN)["actors"][1]
    assert (shown["name"], shown["state"], shown["release"]) == ("writer:trades#1", "running", "r1")
    assert shown["replacement"]["generation"] == 2
    assert shown["replacement"]["outcome"] == "under way"
    world.health.clear()
    world.steps(3)
    shown = describe(world.reconciler, None, births=1, wanted=wanted, own=OWN)["actors"][1]
    assert (shown["name"], shown["release"], shown["ready"]) == ("writer:trades#2", "r2", True)
    assert shown["replacement"]["outcome"] == "done"
