"""An exchange's limits: nothing that is granted ever passes them, and whoever waits as told is served."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ray.errors import BadInput
from k2ray.exchanges.limits import UNDER_WAY_S, Budgets, Limit, fallback, shared_budgets
from k2ray.settings import Binance, ExchangeLimits

asks = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 40)), max_size=80)


def worst_window(granted: list[tuple[float, int]], window_s: float) -> int:
    """Return the most that was granted within any half-open window."""
    return max(
        (sum(amount for at_s, amount in granted if start_s <= at_s < start_s + window_s) for start_s, _ in granted),
        default=0,
    )


@given(asks=asks, limit=st.integers(40, 100), window_s=st.floats(1, 120))
def test_no_window_ever_holds_more_than_the_limit(asks: list[tuple[float, int]], limit: int, window_s: float) -> None:
    budgets = Budgets({"weight": Limit(limit, window_s)})
    now_s, granted = 1000.0, []
    for pause_s, amount in asks:
        now_s += pause_s
        left = budgets.left("weight", now_s)
        wait_s = budgets.take("weight", amount, now_s)
        assert (wait_s == 0.0) == (amount <= left)
        if wait_s == 0.0:
            granted.append((now_s, amount))
        assert wait_s <= window_s + 1e-6
    assert worst_window(granted, window_s * 0.999) <= limit


@given(asks=asks, seed=st.integers(0, 2**32))
def test_whoever_waits_as_long_as_told_is_served(asks: list[tuple[float, int]], seed: int) -> None:
    budgets = Budgets({"weight": Limit(60, 30.0)})
    chance = random.Random(seed)
    now_s = 5.0
    for pause_s, amount in asks:
        now_s += pause_s
        if chance.random() < 0.1:
            budgets.ban("weight", now_s + chance.uniform(0, 100))
        rounds = 0
        while (wait_s := budgets.take("weight", amount, now_s)) > 0:
            now_s += wait_s
            rounds += 1
            assert rounds < 5, "nobody else takes anything"


@given(
    asks=asks,
    cut=st.integers(0, 80),
    other_clock_s=st.floats(-1e6, 1e6),
    away_s=st.floats(0, 100),
    known=st.booleans(),
)
def test_a_restart_of_whoever_counts_forgets_nothing(
    asks: list[tuple[float, int]], cut: int, other_clock_s: float, away_s: float, known: bool
) -> None:
    """The supervisor is killed and another process, with another clock, goes on counting."""
    limit = Limit(50, 60.0)
    budgets, shift_s = Budgets({"connects": limit}), 0.0
    now_s, granted = 1e6, []
    for number, (pause_s, amount) in enumerate(asks):
        now_s += pause_s
        if number == cut:
            memory = budgets.remember(now_s + shift_s)
            now_s += away_s
            shift_s = other_clock_s
            budgets = Budgets({"connects": limit})
            budgets.recall(memory, now_s + shift_s, away_s if known else 0.0)
        if budgets.take("connects", amount, now_s + shift_s) == 0.0:
            granted.append((now_s, amount))
    assert worst_window(granted, 60.0 * 0.999) <= 50


def test_a_ban_holds_for_all_and_a_shorter_one_does_not_end_it() -> None:
    budgets = Budgets({"weight": Limit(100, 60), "connects": Limit(10, 60)})
    budgets.ban("weight", 120.0)
    budgets.ban("weight", 30.0)
    assert budgets.take("weight", 1, 40.0) == 80.0
    assert budgets.left("weight", 40.0) == 0
    assert budgets.take("connects", 1, 40.0) == 0.0, "another resource"
    assert budgets.describe(40.0)["weight"] == {"left": 0, "limit": 100, "banned_s": 80.0}
    assert budgets.take("weight", 1, 120.0) == 0.0


def test_a_ban_survives_a_restart() -> None:
    budgets = Budgets({"weight": Limit(100, 60)})
    budgets.ban("weight", 500.0)
    memory = budgets.remember(100.0)
    later = Budgets({"weight": Limit(100, 60)})
    later.recall(memory, 7.0, away_s=10.0)
    assert later.take("weight", 1, 7.0) == 390.0


def test_the_exchanges_own_count_is_believed_when_it_is_higher() -> None:
    """Another program on this address spends from the same budget."""
    budgets = Budgets({"weight": Limit(100, 60)})
    assert budgets.take("weight", 20, 0.0) == 0.0
    budgets.observe("weight", 90, 1.0)
    assert budgets.left("weight", 1.0) == 10
    budgets.observe("weight", 5, 2.0)
    assert budgets.left("weight", 2.0) == 10


@pytest.mark.parametrize(("resource", "amount"), [("nonsense", 1), ("weight", 101), ("weight", 0), ("weight", -5)])
def test_what_can_never_be_granted_is_an_error(resource: str, amount: int) -> None:
    with pytest.raises(BadInput):
        Budgets({"weight": Limit(100, 60)}).take(resource, amount, 0.0)


@given(
    connects=st.integers(5, 1000),
    feeds=st.integers(1, 64),
    asks=st.lists(st.tuples(st.floats(0, 40), st.integers(0, 64)), max_size=300),
)
def test_shared_and_reserve_together_stay_below_the_exchanges_limit(
    connects: int, feeds: int, asks: list[tuple[float, int]]
) -> None:
    """A supervisor that is away for a while: every feed takes from its own reserve meanwhile."""
    settings = Binance(limits=ExchangeLimits(connects=connects, connects_window_s=300), connections=feeds)
    shared = shared_budgets(settings)
    reserves = [fallback(settings) for _ in range(feeds)]
    now_s, granted = 0.0, []
    for pause_s, who in asks:
        now_s += pause_s
        budgets = shared if who % 2 else reserves[who % feeds]
        if budgets.most("connects") and budgets.take("connects", 1, now_s) == 0.0:
            granted.append((now_s, 1))
    assert worst_window(granted, 300) <= connects


@pytest.mark.parametrize(("connects", "feeds", "each"), [(300, 1, 60), (300, 100, 1), (300, 150, 1), (300, 200, 0)])
def test_the_reserve_is_one_connect_for_each_feed_where_the_limit_is_twice_as_many(
    connects: int, feeds: int, each: int
) -> None:
    settings = Binance(limits=ExchangeLimits(connects=connects), connections=feeds)
    assert fallback(settings).most("connects") == each


def test_the_window_is_longer_than_the_exchanges_by_what_a_connect_takes() -> None:
    """Connects that were under way for long arrive together with those granted later."""
    budgets = shared_budgets(Binance(limits=ExchangeLimits(connects=10, connects_window_s=60)))
    assert [budgets.take("connects", 1, 0.0) for _ in range(8)] == [0.0] * 8
    assert budgets.take("connects", 1, 1.0) == 60 + UNDER_WAY_S - 1
