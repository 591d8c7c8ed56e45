"""Leases on their way from replicas to upkeep, with supervisors that are away, hang, or know nothing yet."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from actors import edge
from actors.leases import LeaseDesk, LeasesHeard, tell_leases
from actors.names import SUPERVISOR
from k2ray.clock import ManualClock
from k2ray.errors import BadInput, SupervisorUnavailable
from k2ray.query.leases import Promises, heard_all_s, margin_s

LEASE_S = 300.0


class FakeSupervisor:
    """Stands for the supervisor behind `edge`, with its desk; it may be away, and begins anew when it is back."""

    def __init__(self, clock: ManualClock, patch: pytest.MonkeyPatch) -> None:
        self._clock = clock
        self.away = False
        self.deadlines: list[float] = []
        self.restart()
        patch.setattr(edge, "find", self.find)
        patch.setattr(edge, "ask", self.ask)

    def restart(self) -> None:
        self.desk = LeaseDesk(self._clock)

    def find(self, name: str, namespace: str) -> Any:
        assert (name, namespace) == (SUPERVISOR, "space")
        if self.away:
            raise SupervisorUnavailable("no actor lives")
        return self

    def ask(self, _handle: Any, method: str, argument: Any, *, timeout_s: float) -> Any:
        self.deadlines.append(timeout_s)
        return {"note_leases": self.desk.note, "leases": self.desk.of}[method](argument)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def supervisor(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> FakeSupervisor:
    return FakeSupervisor(clock, monkeypatch)


def heard_by(clock: ManualClock) -> LeasesHeard:
    return LeasesHeard("space", "trades", LEASE_S, clock)


def test_the_desk_holds_the_longest_lease_of_all_replicas_and_shows_their_number(clock: ManualClock) -> None:
    def shown(table: str) -> float | None:
        return REGISTRY.get_sample_value("k2ray_leased_snapshots", {"table": table})

    desk = LeaseDesk(clock)
    clock.advance(5)
    desk.note({"trades": {7: 330.0, 8: 10.0}, "quotes": {1: 20.0}})
    desk.note({"trades": {7: 100.0}})
    assert desk.of("trades") == (5.0, {7: 330.0, 8: 10.0})
    desk.show()
    assert (shown("trades"), shown("quotes")) == (2, 1)
    clock.advance(20)
    desk.show()
    assert (shown("trades"), shown("quotes")) == (1, 0)


def test_a_table_that_does_not_exist_is_refused(supervisor: FakeSupervisor) -> None:
    with pytest.raises(BadInput):
        tell_leases("space", {"nonsense": {1: 1.0}})


def test_upkeep_hears_what_a_replica_told(clock: ManualClock, supervisor: FakeSupervisor) -> None:
    heard = heard_by(clock)
    clock.advance(heard_all_s(LEASE_S))
    tell_leases("space", {"trades": {7: 330.0}, "quotes": {9: 330.0}})
    assert set(heard() or ()) == {7}
    clock.advance(330)
    known = heard()
    assert known is not None
    assert not known
    assert all(0 < timeout_s <= 2 for timeout_s in supervisor.deadlines), "a hung supervisor holds nobody up"


def test_a_young_supervisor_is_no_reason_to_expire_anything(clock: ManualClock, supervisor: FakeSupervisor) -> None:
    """It was restarted or replaced; replicas tell it again within `heard_all_s`."""
    heard = heard_by(clock)
    assert heard() is None
    clock.advance(heard_all_s(LEASE_S))
    assert heard() is not None
    supervisor.restart()
    assert heard() is None


def test_without_a_supervisor_expiry_waits_no_longer_than_a_lease(
    clock: ManualClock, supervisor: FakeSupervisor
) -> None:
    heard = heard_by(clock)
    clock.advance(60)
    tell_leases("space", {"trades": {7: 330.0}})
    assert heard() is not None
    supervisor.away = True
    clock.advance(329)
    assert heard() is None, "nothing expires"
    clock.advance(1)
    known = heard()
    assert known is not None, "a table must not grow for as long as something is broken"
    assert not known


def test_supervisors_that_die_again_and_again_do_not_make_upkeep_forget(
    clock: ManualClock, supervisor: FakeSupervisor
) -> None:
    heard = heard_by(clock)
    for second in range(0, 1000, 10):
        supervisor.restart()
        if second % 100 == 0:
            tell_leases("space", {"trades": {7: 330.0}})
        known = heard()
        assert known is None or 7 in known
        clock.advance(10)


@pytest.mark.parametrize("error", [AttributeError("no such method"), ValueError("Ray says no")])
def test_what_ray_raises_means_that_the_supervisor_is_away(
    error: Exception, clock: ManualClock, supervisor: FakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_named: Any) -> Any:
        raise error

    monkeypatch.setattr(edge, "ask", fail)
    assert heard_by(clock)() is None
    with pytest.raises(SupervisorUnavailable):
        tell_leases("space", {"trades": {7: 330.0}})


class Chain:
    """Two replicas, the supervisor and upkeep, second by second; commits come every 5 s, the newest 100 stay."""

    def __init__(self, clock: ManualClock, supervisor: FakeSupervisor) -> None:
        self.clock = clock
        self.supervisor = supervisor
        self.replicas = [Promises(LEASE_S, clock), Promises(LEASE_S, clock)]
        self.heard = heard_by(clock)
        self.there = set(range(-100, 1))
        self.head = 0
        self.second = 0

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            self.second += 1
            for promises in self.replicas:
                if due := promises.due():
                    try:
                        tell_leases("space", due)
                    except SupervisorUnavailable:
                        promises.told(False)
                    else:
                        promises.told(True)
            if self.second % 5 == 0:
                self.head += 1
                self.there.add(self.head)
            if self.second % 30 == 0 and (known := self.heard()) is not None:
                self.there = {one for one in self.there if one > self.head - 100 or one in known}

    def away(self, seconds: int) -> None:
        self.supervisor.away = True
        self.run(seconds)
        self.supervisor.away = False
        self.supervisor.restart()


events = st.sampled_from(["", "", "supervisor", "upkeep", "both"])


@settings(max_examples=20, deadline=None)
@given(
    story=st.lists(st.tuples(st.integers(1, int(LEASE_S)), st.integers(0, 1), events), min_size=3, max_size=8),
    away_s=st.integers(0, 12),
)
@example(story=[(300, 0, ""), (300, 0, ""), (300, 0, "")], away_s=0)  # each page as late as it may be
@example(story=[(300, 0, ""), (298, 1, "both"), (200, 0, "")], away_s=0)  # nobody knows anything, and a look follows
@example(story=[(300, 0, ""), (300, 0, ""), (300, 0, "supervisor"), (300, 0, "")], away_s=12)
def test_who_pages_in_time_always_finds_the_snapshot(story: list[tuple[int, int, str]], away_s: int) -> None:
    """Pages up to a whole lease apart, by either replica, while supervisor and upkeep are restarted at any moment."""
    with pytest.MonkeyPatch.context() as patch:
        clock = ManualClock()
        chain = Chain(clock, FakeSupervisor(clock, patch))
        chain.run(60)
        mine = chain.head
        for pause_s, replica, event in story:
            chain.replicas[replica].take("trades", mine)
            if event in {"supervisor", "both"}:
                out_s = min(away_s, pause_s)
                chain.run(pause_s - out_s)
                chain.away(out_s)  # at the worst moment: just before the next page
            else:
                chain.run(pause_s)
            if event in {"upkeep", "both"}:
                chain.heard = heard_by(clock)
            assert mine in chain.there
        assert len(chain.there) <= 100 + 6 + 1 + int(LEASE_S + margin_s(LEASE_S)) // 5
        chain.run(2 * int(LEASE_S + margin_s(LEASE_S)) + 60)
        assert mine not in chain.there or mine > chain.head - 107, "and it goes once nobody pages any more"
