from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.deploy import (
    FIXED,
    Change,
    Deed,
    Move,
    Outcome,
    Running,
    changes,
    judge,
    plan,
    refuse_fixed,
)
from actors.names import ROLES
from k2ray.errors import SettingsError
from k2ray.settings import Settings

BLUE, GREEN = "blue", "green"
PARTITIONS = 4


def wanted(connections: int, tables: tuple[str, ...] = ("trades",)) -> list[str]:
    feeds = [f"feed:binance:{index}" for index in range(connections)]
    return [*(f"writer:{table}" for table in tables), *feeds, "upkeep:trades", "serializer", "backfill:binance"]


def all_of(digest: str, names: list[str]) -> Running:
    return Running(digest, digest, dict.fromkeys(names, digest))


def deeds(moves: list[Move]) -> list[tuple[str, tuple[str, ...]]]:
    return [(move.deed.value, tuple(sorted({name.split(":")[0] for name in move.names}))) for move in moves]


def test_who_reads_changes_before_who_writes_and_goes_back_after_it() -> None:
    moves = plan(all_of(BLUE, wanted(1)), GREEN, wanted(1))
    assert deeds(moves) == [
        ("supervisor", ()),
        ("http", ()),
        ("green", ("serializer",)),
        ("cut", ("serializer",)),
        ("green", ("upkeep", "writer")),
        ("cut", ("upkeep", "writer")),
        ("green", ("backfill", "feed")),
        ("cut", ("backfill", "feed")),
    ]
    back = plan(all_of(GREEN, wanted(1)), BLUE, wanted(1), back=True)
    assert deeds(back) == [
        ("green", ("backfill", "feed")),
        ("cut", ("backfill", "feed")),
        ("green", ("upkeep", "writer")),
        ("cut", ("upkeep", "writer")),
        ("green", ("serializer",)),
        ("cut", ("serializer",)),
        ("http", ()),
        ("supervisor", ()),
    ]


def test_what_runs_already_is_left_alone() -> None:
    assert plan(all_of(GREEN, wanted(2)), GREEN, wanted(2)) == []
    half = Running(GREEN, GREEN, dict.fromkeys(wanted(1), GREEN) | {"feed:binance:0": BLUE})
    assert [move.names for move in plan(half, GREEN, wanted(1))] == [("feed:binance:0",)] * 2


def test_what_is_no_longer_wanted_drains_last_and_producers_first() -> None:
    """A feed that is cut away still delivers while the others take over its share."""
    moves = plan(all_of(BLUE, wanted(2, ("trades", "quotes"))), GREEN, wanted(1))
    assert [(move.deed, move.gone) for move in moves[-2:]] == [
        (Deed.DRAIN, ("feed:binance:1",)),
        (Deed.DRAIN, ("writer:quotes",)),
    ]
    back = plan(all_of(GREEN, wanted(2)), BLUE, wanted(1), back=True)
    assert [move.deed for move in back[-2:]] == [Deed.DRAIN, Deed.SUPERVISOR]


def test_every_role_is_known_to_the_order() -> None:
    names = [f"{role}:x" for role in ROLES]
    moves = plan(Running(BLUE, BLUE, {}), GREEN, names)
    assert sorted(name for move in moves for name in move.names) == sorted(names)


# --- a pretend system that carries the moves out, one actor at a time, and may be interrupted anywhere


class Interrupted(Exception):
    """The deploying process was killed."""


class Pretend:
    """Logical name -> the releases of its living generations, the oldest first; a feed's share follows from both."""

    def __init__(self, digest: str, connections: int, chance: random.Random) -> None:
        self.connections = {digest: connections}
        self.supervisor = self.http = digest
        self.lives: dict[str, list[str]] = {name: [digest] for name in wanted(connections)}
        self.chance = chance
        self.patience = 10**9

    def running(self) -> Running:
        return Running(self.supervisor, self.http, {name: lives[0] for name, lives in self.lives.items()})

    def tick(self) -> None:
        self.assert_covered()
        self.patience -= 1
        if self.patience < 0:
            raise Interrupted

    def assert_covered(self) -> None:
        for partition in range(PARTITIONS):
            assert any(
                partition % self.connections[digest] == int(name.rsplit(":", 1)[1])
                for name, lives in self.lives.items()
                if name.startswith("feed:")
                for digest in lives
            ), f"nobody delivers partition {partition}: {self.lives}"

    def shuffled(self, names: tuple[str, ...]) -> list[str]:
        return self.chance.sample(names, len(names))

    def make(self, move: Move, target: str) -> None:
        match move.deed:
            case Deed.SUPERVISOR:
                self.supervisor = target
            case Deed.HTTP:
                self.http = target
            case Deed.GREEN:
                for name in self.shuffled(move.new + move.replaced):
                    lives = self.lives.setdefault(name, [])
                    if target not in lives:
                        lives.append(target)
                    self.tick()
            case Deed.CUT:
                for name in self.shuffled(move.replaced):
                    self.lives[name] = [target]
                    self.tick()
            case Deed.DRAIN:
                for name in self.shuffled(move.gone):
                    del self.lives[name]
                    self.tick()
        self.tick()

    def go(self, target: str, *, back: bool) -> None:
        for name, (current, *beside) in self.lives.items():  # what stands beside it for another target is given up
            self.lives[name] = [current, *(digest for digest in beside if digest == target)]
        for move in plan(self.running(), target, wanted(self.connections[target]), back=back):
            self.make(move, target)


@settings(max_examples=200)
@given(
    before=st.integers(1, PARTITIONS),
    after=st.integers(1, PARTITIONS),
    interrupted=st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=4),
    finally_back=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_whatever_is_interrupted_no_share_is_left_alone_and_the_next_plan_completes_it(
    before: int, after: int, interrupted: list[tuple[int, bool]], finally_back: bool, seed: int
) -> None:
    """Sharding anew (1 -> 2, 3 -> 2), killed at any point, completed or taken back: every partition is delivered."""
    system = Pretend(BLUE, before, random.Random(seed))
    system.connections[GREEN] = after
    for patience, back in interrupted:
        system.patience = patience
        try:
            system.go(BLUE if back else GREEN, back=back)
        except Interrupted:
            continue
    system.patience = 10**9
    target = BLUE if finally_back else GREEN
    system.go(target, back=finally_back)
    assert system.lives == {name: [target] for name in wanted(system.connections[target])}
    assert (system.supervisor, system.http) == (target, target)


# --- settings


def test_changes_are_named_at_their_leaves() -> None:
    old = {"a": {"b": 1, "c": [1]}, "d": None}
    new = {"a": {"b": 2, "c": [1, 2]}, "e": 3}
    assert changes(old, new) == [Change("a.b", 1, 2), Change("a.c", [1], [1, 2]), Change("e", None, 3)]
    assert changes(old, old) == []


@pytest.mark.parametrize(
    "name", ["data_dir", "kafka.partitions", "lake.namespace", "api.port", "ray.num_cpus", "lake.catalog.uri"]
)
def test_a_setting_that_cannot_change_under_a_running_system_is_named_with_a_way_out(name: str) -> None:
    with pytest.raises(SettingsError, match=name.replace(".", r"\.")) as refused:
        refuse_fixed([Change("feed.transport", 1, 2), Change(name, 1, 2)])
    assert "feed.transport" not in str(refused.value)


def test_every_fixed_setting_exists() -> None:
    plain: dict[str, Any] = Settings().model_dump(mode="json")
    for name in FIXED:
        inner: Any = plain
        for part in name.split("."):
            inner = inner[part]


def test_symbols_connections_and_policies_may_change() -> None:
    refuse_fixed([Change("exchanges.binance.symbols", 1, 2), Change("exchanges.binance.connections", 1, 2)])
    refuse_fixed(
        [Change("api.replicas", 1, 2), Change("lake.commit.interval_s", 1, 2), Change("kafka.retention_s", 1, 2)]
    )


# --- verdicts


def actor(code: str, *, state: str = "running", ready: bool = True, planned: Mapping[str, Any] | None = None) -> Any:
    plan = None if planned is None else {"generation": 2, "outcome": "under way", "why": "", "ready": False, **planned}
    return {
        "state": state,
        "ready": ready,
        "restarts": 0,
        "last_reason": "",
        "detail": {"code": code},
        "replacement": plan,
    }


FEED = "feed:binance:0"
STAND = Move(Deed.GREEN, replaced=(FEED,))
CUT = Move(Deed.CUT, replaced=(FEED,))


@pytest.mark.parametrize(
    ("move", "seen", "outcome"),
    [
        (STAND, actor(BLUE, planned={}), Outcome.WAITING),
        (STAND, actor(BLUE, planned={"ready": True}), Outcome.DONE),
        (CUT, actor(BLUE, planned={"ready": True}), Outcome.WAITING),
        (CUT, actor(GREEN, planned={"outcome": "done"}), Outcome.DONE),
        (STAND, actor(BLUE, planned={"outcome": "failed", "why": "no data"}), Outcome.FAILED),
        (STAND, actor(BLUE, planned={"generation": 1, "outcome": "failed"}), Outcome.WAITING),
        (STAND, actor(GREEN, ready=False), Outcome.WAITING),
        (STAND, actor(GREEN), Outcome.DONE),
        (STAND, actor("", state="failed"), Outcome.FAILED),
        (STAND, actor("", state="starting"), Outcome.WAITING),
    ],
)
def test_a_move_is_judged_by_what_the_supervisor_sees(move: Move, seen: Any, outcome: Outcome) -> None:
    assert judge(move, {FEED: seen}, GREEN, {FEED: 2}).outcome is outcome


def test_one_failed_actor_fails_the_group_and_the_reason_names_it() -> None:
    move = Move(Deed.GREEN, new=("feed:binance:1",), replaced=(FEED,))
    seen = {FEED: actor(BLUE, planned={"ready": True}), "feed:binance:1": actor("", state="failed")}
    verdict = judge(move, seen, GREEN, {FEED: 2})
    assert verdict.outcome is Outcome.FAILED
    assert "feed:binance:1" in verdict.reason


def test_draining_is_done_when_nobody_is_listed() -> None:
    move = Move(Deed.DRAIN, gone=(FEED,))
    assert judge(move, {FEED: actor(BLUE, state="draining")}, GREEN, {}).outcome is Outcome.WAITING
    assert judge(move, {}, GREEN, {}).outcome is Outcome.DONE
