"""Leases end, are renewed, are bounded, and what has one is never in a plan of expiry."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from structlog.testing import capture_logs

from k2ray.clock import ManualClock
from k2ray.errors import BadInput
from k2ray.lake.progress import OFFSETS_KEY
from k2ray.lake.upkeep_plan import make_plan
from k2ray.query.leases import Leases, Promises, heard_all_s, margin_s, resend_s
from k2ray.settings import Upkeep

NOON = datetime(2026, 3, 1, 12, 50, tzinfo=UTC)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def history(count: int) -> Any:
    """Return metadata with so many snapshots in one line, ids 1 to `count`, the newest last."""
    summary = Summary(Operation.APPEND, **{OFFSETS_KEY: "{}"})
    snapshots = [
        Snapshot(
            snapshot_id=number,
            parent_snapshot_id=number - 1 or None,
            sequence_number=number,
            timestamp_ms=number,
            manifest_list=f"file:///snap-{number}.avro",
            summary=summary,
        )
        for number in range(1, count + 1)
    ]
    return SimpleNamespace(snapshots=snapshots, current_snapshot_id=count, refs={})


def test_a_lease_ends_and_is_renewed_by_each_page(clock: ManualClock) -> None:
    leases = Leases(clock)
    assert leases.take("trades", 7, 300)
    clock.advance(200)
    assert leases.live("trades") == {7: 100}
    assert not leases.take("trades", 7, 300), "it is known already"
    clock.advance(299)
    assert leases.live("trades") == {7: 1}
    assert leases.live("quotes") == {}
    clock.advance(1)
    assert leases.live("trades") == {}
    assert leases.all_live() == {}
    assert leases.take("trades", 7, 300)


def test_an_older_message_never_shortens_a_lease(clock: ManualClock) -> None:
    """Two replicas tell of the same snapshot, in any order."""
    leases = Leases(clock)
    leases.take_all("trades", {7: 300, 8: 10})
    leases.take_all("trades", {7: 20, 8: 40})
    assert leases.live("trades") == {7: 300, 8: 40}


def test_leases_of_a_table_that_does_not_exist_are_refused(clock: ManualClock) -> None:
    leases = Leases(clock)
    with pytest.raises(BadInput, match="'trade'"):
        leases.take("trade", 7, 300)
    assert leases.all_live() == {}


def test_their_number_is_bounded_and_what_is_dropped_is_said(clock: ManualClock) -> None:
    def dropped() -> float:
        return REGISTRY.get_sample_value("k2ray_leases_dropped_total", {"table": "trades"}) or 0.0

    before = dropped()
    leases = Leases(clock, most=3)
    for snapshot in range(3):
        leases.take("trades", snapshot, 300)
        clock.advance(1)
    leases.take("trades", 0, 300)
    with capture_logs() as logs:
        leases.take("trades", 3, 300)
    assert set(leases.live("trades")) == {0, 2, 3}, "the one unused for longest went"
    assert dropped() - before == 1
    [said] = logs
    assert (said["event"], said["snapshot_id"], said["table"]) == ("lease dropped", 1, "trades")


def test_a_first_lease_is_told_soon_renewals_in_rounds(clock: ManualClock) -> None:
    promises = Promises(300, clock)
    assert promises.due() == {}
    promises.take("trades", 7)
    assert promises.due() == {"trades": {7: 330}}
    promises.told(True)
    clock.advance(5)
    promises.take("trades", 7)
    assert promises.due() == {}, "told already, and it ends late enough"
    clock.advance(5)
    assert promises.due() == {"trades": {7: 325}}
    promises.told(False)
    assert promises.due() == {"trades": {7: 325}}, "not heard, so told again at once"
    promises.told(True)
    clock.advance(400)
    assert promises.due() == {}


@given(st.floats(1, 3600))
def test_a_late_renewal_comes_within_the_margin(lease_s: float) -> None:
    """A round, its deadline of 2 s and a restart of the supervisor (2 s): the old lease still lives."""
    rounds = resend_s(lease_s) + min(1.0, resend_s(lease_s))
    assert rounds <= margin_s(lease_s) / 2 + 1
    assert heard_all_s(lease_s) > resend_s(lease_s) + 2
    assert lease_s < 60 or margin_s(lease_s) >= rounds + 2 + 2 + 10


steps = st.one_of(
    st.tuples(st.just("commit"), st.integers(1, 40)),
    st.tuples(st.just("page"), st.integers(0, 200)),
    st.tuples(st.just("wait"), st.integers(1, 200)),
    st.tuples(st.just("unknown"), st.just(0)),
)


@given(
    story=st.lists(steps, min_size=1, max_size=30),
    kept=st.integers(2, 20),
    every=st.integers(1, 20),
    tagged=st.sets(st.integers(1, 40)),
)
def test_a_snapshot_with_a_live_lease_is_never_in_the_plan(
    story: list[tuple[str, int]], kept: int, every: int, tagged: set[int]
) -> None:
    clock = ManualClock()
    leases = Leases(clock)
    upkeep = Upkeep(snapshots_kept=kept, expire_every=every, compact=False)
    metadata = history(3)
    ends: dict[int, float] = {}
    for action, value in story:
        there = [one.snapshot_id for one in metadata.snapshots]
        if action == "commit":
            newer = history(metadata.current_snapshot_id + value)
            metadata.snapshots = metadata.snapshots + newer.snapshots[metadata.current_snapshot_id :]
            metadata.current_snapshot_id = newer.current_snapshot_id
        elif action == "page":
            chosen = there[value % len(there)]
            leases.take("trades", chosen, 300)
            ends[chosen] = clock.monotonic_s() + 300
        elif action == "wait":
            clock.advance(value)
        metadata.refs = {f"mine-{one}": SimpleNamespace(snapshot_id=one) for one in tagged & set(there)}
        known = None if action == "unknown" else leases.live("trades")
        plan = make_plan(metadata, upkeep, NOON, known)
        leased = {one for one, end_s in ends.items() if end_s > clock.monotonic_s()}
        assert not leased & set(plan.expire)
        assert known is not None or not plan.expire, "what is not known may be leased"
        assert not {one.snapshot_id for one in metadata.snapshots[-kept:]} & set(plan.expire)
        due = [one for one in plan.expire if one not in leased]
        metadata.snapshots = [one for one in metadata.snapshots if one.snapshot_id not in due]
    # What had a lease goes once that has ended.
    clock.advance(301)
    plan = make_plan(metadata, upkeep.model_copy(update={"expire_every": 1}), NOON, leases.live("trades"))
    left = {one.snapshot_id for one in metadata.snapshots} - set(plan.expire)
    assert len(left - tagged) <= kept
