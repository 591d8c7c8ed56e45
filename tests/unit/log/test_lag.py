"""Lag is known without asking the broker on the hot path."""

from __future__ import annotations

from k2ray.clock import ManualClock
from k2ray.errors import BrokerUnavailable
from k2ray.log.consumer import PartitionKey
from k2ray.log.lag import LagWatch
from k2ray.metrics import BROKER_QUESTIONS

ONE, TWO = ("t", 0), ("t", 1)


class Ends:
    """Ends of partitions: some came with a fetch, all can be asked for."""

    def __init__(self, cached: dict[PartitionKey, int], real: dict[PartitionKey, int]) -> None:
        self.cached = cached
        self.real = real
        self.asked = 0
        self.away = False

    def cached_end(self, key: PartitionKey) -> int | None:
        return self.cached.get(key)

    def watermarks(self, key: PartitionKey, *, timeout_s: float = 0) -> tuple[int, int]:
        self.asked += 1
        if self.away:
            raise BrokerUnavailable("away")
        return 0, self.real[key]


def questions() -> float:
    return BROKER_QUESTIONS._value.get()


def test_lag_is_not_asked_of_the_broker_with_every_batch() -> None:
    """Trap 22: asking with every batch cost 1.7 s a batch."""
    ends = Ends({ONE: 120}, {TWO: 50})
    clock = ManualClock()
    watch = LagWatch(ends, clock, interval_s=5)
    before = questions()
    for batch in range(1000):
        assert watch.behind({ONE: 20 + batch % 100, TWO: 10}) == {ONE: 100 - batch % 100, TWO: 40}
        clock.advance(0.01)
    assert ends.asked == 2
    assert questions() - before == 2


def test_a_broker_that_is_away_leaves_the_last_end_known() -> None:
    ends = Ends({}, {ONE: 100, TWO: 7})
    clock = ManualClock()
    watch = LagWatch(ends, clock, interval_s=5)
    assert watch.behind({ONE: 90}) == {ONE: 10}
    ends.away = True
    clock.advance(6)
    assert watch.behind({ONE: 95, TWO: 0}) == {ONE: 5}
    ends.away = False
    ends.cached[TWO] = 9
    assert watch.behind({ONE: 100, TWO: 0}) == {ONE: 0, TWO: 9}


def test_a_position_beyond_a_stale_end_is_no_negative_lag() -> None:
    watch = LagWatch(Ends({ONE: 100}, {}), ManualClock())
    assert watch.behind({ONE: 130}) == {ONE: 0}
