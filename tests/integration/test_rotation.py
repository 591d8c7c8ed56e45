"""Rotations and faults of connections between the simulated exchange and a real Kafka; ids are compared, not counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.limits import LimitDesk
from tests.support.clocks import FastClock
from tests.support.feed_world import SYMBOLS, FeedWorld, until
from tests.support.kafka import TestBroker
from tests.support.sim import Sim, start_sim

pytestmark = pytest.mark.integration

RATE = 5_000

MANY = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "ADAUSDT")
"""One for each of four partitions, so that four feeds have one each."""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    """An exchange with 5,000 trades and as many quotes a second."""
    with start_sim(tmp_path_factory.mktemp("busy"), rate=RATE, symbols=SYMBOLS, channels="trade,bookTicker") as sim:
        yield sim


async def test_twenty_rotations_at_5000_trades_a_second_lose_double_and_leave_open_nothing(
    broker: TestBroker, busy: Sim, tmp_path: Path
) -> None:
    """Trap 6: rotation closed the old connection before the new one was up: 48 trades lost per rotation."""
    world = FeedWorld(broker, tmp_path, busy)
    async with world.running():
        for number in range(1, 21):
            assert world.session.rotate() == "rotating"
            await world.rotated("operator", number)
        await world.received(RATE)
    status = world.status
    assert (status.rotations["operator"], status.reconnects) == (20, 0)
    truth = busy.truth_now()
    for channel in ("trades", "quotes"):
        judged = world.judge(channel, truth)
        assert set(judged.accepted) == set(SYMBOLS)
        assert judged.duplicates > 100, "both connections delivered the overlap"
        assert judged.lost == {}
        assert judged.doubled == 0
        assert judged.missing == {}, "the ledger agrees"


async def test_a_half_open_socket_is_found_and_replaced_and_what_it_swallowed_is_a_gap(
    broker: TestBroker, busy: Sim, tmp_path: Path
) -> None:
    """Trap 7: a heartbeat is tested against a peer that stops answering."""
    world = FeedWorld(broker, tmp_path, busy, clock=FastClock(10), stale_after_s=10, pong_timeout_s=5)
    async with world.running():
        await world.received(RATE // 4)
        await world.fault("half_open")
        await world.rotated("stale")
        await world.received(RATE // 4)
    status = world.status
    assert status.reconnects == 0
    assert status.stale_probes >= 1
    judged = world.judge("trades", busy.truth_now())
    assert judged.doubled == 0
    assert judged.lost.keys() == set(SYMBOLS), "the exchange sent them into the void"
    assert judged.missing == judged.lost, "and the ledger names every one of them"


async def test_a_restart_of_the_exchange_is_one_gap_that_the_ledger_names(
    broker: TestBroker, busy: Sim, tmp_path: Path
) -> None:
    world = FeedWorld(broker, tmp_path, busy)
    async with world.running():
        await world.received(RATE // 4)
        await world.fault("outage", seconds=1)
        await until(lambda: world.status.reconnects == 1, "the connection ends")
        await until(lambda: world.status.ready, "another one delivers")
        await world.received(RATE // 4)
    assert sum(world.status.rotations.values()) == 0
    judged = world.judge("trades", busy.truth_now())
    assert judged.doubled == 0
    assert judged.lost.keys() == set(SYMBOLS), "the market went on"
    assert judged.missing == judged.lost
    for ids in judged.lost.values():
        assert ids == list(range(ids[0], ids[-1] + 1)), "one hole, where nobody listened"


async def test_an_announced_shutdown_costs_nothing(broker: TestBroker, busy: Sim, tmp_path: Path) -> None:
    world = FeedWorld(broker, tmp_path, busy)
    async with world.running():
        await world.received(RATE // 4)
        await world.fault("server_shutdown", seconds=10)
        await world.rotated("shutdown")
        await world.received(RATE // 4)
    assert world.status.reconnects == 0
    truth = busy.truth_now()
    for channel in ("trades", "quotes"):
        judged = world.judge(channel, truth)
        assert (judged.lost, judged.doubled, judged.missing) == ({}, 0, {})


async def test_no_certificate_that_is_refused_costs_the_connection_that_is_up(
    broker: TestBroker, busy: Sim, tmp_path: Path
) -> None:
    """A new connection that never comes up: the old one stays, the reason is said, and it succeeds in the end.

    `test_feed_handshake.py` has every kind, with both transports.
    """
    kinds = {
        "expired": "it has expired",
        "other_host": "it is for another host",
        "revoked": "revoked",
    }
    world = FeedWorld(broker, tmp_path, busy, tls={"crl_file": str(busy.crl_file)})
    async with world.running():
        for number, (kind, reason) in enumerate(kinds.items(), start=1):
            await world.fault("wrong_certificate", how=kind, seconds=1)
            assert world.session.rotate() == "rotating"
            await until(lambda reason=reason: reason in world.status.last_reason, f"the refusal: {kind}")  # type: ignore[misc]
            assert world.status.ready, "the old connection goes on"
            await world.rotated("operator", number)
    assert world.status.reconnects == 0
    judged = world.judge("trades", busy.truth_now())
    assert (judged.lost, judged.doubled, judged.missing) == ({}, 0, {})


async def test_losing_either_of_two_copies_of_a_feed_loses_nothing(
    broker: TestBroker, busy: Sim, tmp_path: Path
) -> None:
    world = FeedWorld(broker, tmp_path, busy, exchange={"redundancy": 2}, backoff_initial_s=1)
    async with world.running():
        first, second = world.sessions
        for victim, other in ((first, second), (second, first)):
            await world.received(RATE // 4, other)
            before = victim.status().reconnects
            for line in list(victim._lines.values()):
                assert line.transport is not None
                line.transport.cut()
            await until(lambda before=before, victim=victim: victim.status().reconnects == before + 1, "it is cut")  # type: ignore[misc]
            await world.received(RATE // 4, other)
            await until(lambda victim=victim: victim.status().ready, "it is back")  # type: ignore[misc]
            await world.received(RATE // 4, victim)
    truth = busy.truth_now()
    for channel in ("trades", "quotes"):
        judged = world.judge(channel, truth)
        assert judged.duplicates > RATE // 4
        assert (judged.lost, judged.doubled, judged.missing) == ({}, 0, {})


async def test_connections_are_replaced_before_the_exchange_cuts_them(broker: TestBroker, tmp_path: Path) -> None:
    """The 24 h cut, compressed to 6 s: with the longest schedule allowed, the exchange's own limit decides.

    So are the pings, which is why more messages are allowed than in the exchange's real time.
    """
    with start_sim(tmp_path, rate=500, symbols=SYMBOLS, lifetime_s=6, messages_per_s=1000) as sim:
        world = FeedWorld(
            broker,
            tmp_path,
            sim,
            exchange={"limits": {"messages_per_s": 500}},
            rotate_every_s=86_400,
            time_compression=86_400 * 0.9 / 2.5,
        )
        async with world.running():
            await world.rotated("lifetime", 3)
        assert world.status.reconnects == 0
        judged = world.judge("trades", sim.truth_now())
        assert (judged.lost, judged.doubled, judged.missing) == ({}, 0, {})


def _all_back(world: FeedWorld, before: list[int]) -> bool:
    """Whether every feed has lost its connection since and has another one."""
    statuses = [one.status() for one in world.sessions]
    return all(status.ready and status.reconnects > was for status, was in zip(statuses, before, strict=True))


async def test_restarts_of_the_exchange_under_many_feeds_are_no_storm(broker: TestBroker, tmp_path: Path) -> None:
    """Reconnect storms: eight feeds lose their connections at once, again and again; the exchange refuses nobody."""
    limit = 40
    with start_sim(tmp_path, rate=500, symbols=MANY, connects_per_5_min=limit) as sim:
        desk = LimitDesk(tmp_path)
        held_back: set[asyncio.Task[None] | None] = set()

        async def permit(resource: str, amount: int) -> None:
            while True:
                wait_s = desk.permit("binance", resource, amount)
                if wait_s <= 0.0:
                    return
                if resource == "connects":
                    held_back.add(asyncio.current_task())
                await asyncio.sleep(min(wait_s, 0.5))

        world = FeedWorld(
            broker,
            tmp_path,
            sim,
            exchange={"symbols": MANY, "connections": 4, "redundancy": 2, "limits": {"connects": limit}},
            permit=permit,
            kafka={"partitions": 4},
            backoff_initial_s=0.05,
            backoff_max_s=0.2,
        )
        desk.configure(world.settings)
        async with world.running():
            assert all(session.symbols for session in world.sessions)
            for _ in range(20):
                if held_back:
                    break
                before = [one.status().reconnects for one in world.sessions]
                await world.fault("outage", seconds=0.5)
                await until(lambda before=before: held_back or _all_back(world, before), "back, or held back")  # type: ignore[misc]
            assert held_back, "more connects were wanted than allowed"
            await asyncio.sleep(2)
            counters = (await asyncio.to_thread(sim.state))["counters"]
            assert counters.get("connects_refused", 0) == 0
            assert counters["connections_opened"] <= limit * 0.8
