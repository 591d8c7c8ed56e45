from __future__ import annotations

from prometheus_client import REGISTRY

from actors.names import ActorName
from actors.report import count, describe
from actors.wanted import Wanted
from tests.support.actor_world import ActorWorld

WANTED = Wanted(1, "{}", release="r1")

CONTRACT = {
    "name",
    "role",
    "generation",
    "state",
    "pid",
    "restarts",
    "last_reason",
    "rss_bytes",
    "rate",
    "lag_trades",
    "lag_s",
    "data_age_s",
    "ready",
    "release",
    "replacement",
}


def test_the_picture_keeps_its_contract() -> None:
    world = ActorWorld()
    world.starts_fail = {"feed:binance:0"}
    world.reconciler.want(["writer:trades", "feed:binance:0"], 1)
    world.steps(120)
    picture = describe(world.reconciler, None, births=2, wanted=WANTED)
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
    picture = describe(world.reconciler, None, births=1, wanted=WANTED)
    assert picture["gaps"] == [gap]
    assert picture["actors"][1]["detail"] == {"commits": 3}


def test_every_metric_of_actors_moves() -> None:
    world = ActorWorld()
    world.starts_fail = {"feed:binance:9"}
    world.reconciler.want(["writer:moves", "feed:binance:9"], 1)
    world.steps(120)
    world.reconciler.children["writer:moves"].lives[1].health = {"rss_bytes": 77.0}
    count(world.reconciler)

    def value(metric: str, name: str) -> float | None:
        return REGISTRY.get_sample_value(metric, {"actor": name})

    assert (value("k2ray_actor_up", "writer:moves"), value("k2ray_actor_up", "feed:binance:9")) == (1, 0)
    assert (value("k2ray_actor_failed", "writer:moves"), value("k2ray_actor_failed", "feed:binance:9")) == (0, 1)
    assert value("k2ray_actor_restarts", "feed:binance:9") == 8
    assert value("k2ray_actor_rss_bytes", "writer:moves") == 77
    world.die(ActorName("writer:moves", 1))
    count(world.reconciler)
    assert value("k2ray_actor_up", "writer:moves") == 0
