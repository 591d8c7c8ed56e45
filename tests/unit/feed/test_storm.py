"""A reconnect storm in virtual time: many feeds, one address, an exchange that restarts again and again.

The real machines and the real budgets; only sockets and the clock are pretended.
"""

from __future__ import annotations

import heapq
import random

import pytest

from k2ray.exchanges.limits import fallback, shared_budgets
from k2ray.feed import events
from k2ray.feed.connection import Habits
from k2ray.feed.rotation import Rotation
from k2ray.settings import Binance, ExchangeLimits, Feed

FEEDS = 100


class Address:
    """All feeds of one address and the exchange that counts their connects.

    Args:
        seed: Of all chance.
        limited: Whether connects ask for a permit.
        away: Whether the supervisor is away, and each feed takes from its own reserve.
    """

    def __init__(self, seed: int, *, limited: bool = True, away: bool = False) -> None:
        self.chance = random.Random(seed)
        settings = Binance(limits=ExchangeLimits(), connections=FEEDS)
        self.shared = shared_budgets(settings)
        self.reserves = [fallback(settings) for _ in range(FEEDS)]
        self.limited, self.away = limited, away
        self.feeds = [Rotation(Feed(), self.chance.uniform, Habits()) for _ in range(FEEDS)]
        self.up: list[set[int]] = [set() for _ in range(FEEDS)]
        self.reachable = True
        self.slowest_s = 10.0
        self.connects: list[float] = []
        self.now_s = 0.0
        self.queue: list[tuple[float, int, int, str, int]] = []
        self.number = 0

    def later(self, at_s: float, feed: int, what: str, connection: int = 0) -> None:
        self.number += 1
        heapq.heappush(self.queue, (at_s, self.number, feed, what, connection))

    def tell(self, feed: int, event: events.Event) -> None:
        for item in self.feeds[feed].handle(event, self.now_s):
            if isinstance(item, events.Open):
                self.later(self.now_s, feed, "ask", item.connection)
            elif isinstance(item, events.Close):
                self.later(self.now_s + 0.05, feed, "gone", item.connection)
            elif isinstance(item, events.Ping) and self.reachable:
                self.later(self.now_s + 0.05, feed, "pong", item.connection)
        due_s = self.feeds[feed].due_s
        if due_s is not None:
            self.later(max(due_s, self.now_s), feed, "tick")

    def run(self, until_s: float) -> None:
        while self.queue and self.queue[0][0] <= until_s:
            self.now_s, _, feed, what, connection = heapq.heappop(self.queue)
            if what == "tick":
                due_s = self.feeds[feed].due_s
                if due_s is not None and due_s <= self.now_s:
                    self.tell(feed, events.Tick())
            elif what == "ask":
                budgets = self.reserves[feed] if self.away else self.shared
                wait_s = budgets.take("connects", 1, self.now_s) if self.limited else 0.0
                if wait_s > 0:
                    # As `actors.limits.Permits` does.
                    pause_s = min(wait_s, 15.0)
                    self.later(
                        self.now_s + pause_s + self.chance.uniform(0, 0.1 + pause_s / 10), feed, what, connection
                    )
                else:
                    self.later(self.now_s + self.chance.uniform(0.01, self.slowest_s), feed, "arrive", connection)
            elif what == "arrive":
                self.connects.append(self.now_s)
                if self.reachable:
                    self.up[feed].add(connection)
                    self.tell(feed, events.Opened(connection))
                else:
                    self.tell(feed, events.Failed(connection, "refused"))
            elif what == "pong" and connection in self.up[feed]:
                self.tell(feed, events.Pong(connection))
            elif what == "gone" and connection in self.up[feed]:
                self.up[feed].discard(connection)
                self.tell(feed, events.Closed(connection, "gone"))
        self.now_s = until_s

    def restart(self, away_s: float) -> None:
        self.reachable = False
        for feed, connections in enumerate(self.up):
            for connection in list(connections):
                self.later(self.now_s, feed, "gone", connection)
        self.run(self.now_s + away_s)
        self.reachable = True

    @property
    def most_in_5_min(self) -> int:
        worst, first = 0, 0
        for last, at_s in enumerate(self.connects):
            while self.connects[first] <= at_s - 300:
                first += 1
            worst = max(worst, last - first + 1)
        return worst

    def storm(self) -> None:
        for feed in range(FEEDS):
            self.tell(feed, events.Started())
        for _ in range(20):
            self.run(self.now_s + self.chance.uniform(5, 40))
            self.restart(self.chance.uniform(1, 20))


@pytest.mark.parametrize("seed", range(3))
def test_a_hundred_feeds_and_an_exchange_that_restarts_never_pass_its_limit_and_all_come_back(seed: int) -> None:
    world = Address(seed)
    world.storm()
    world.run(world.now_s + 1_200)
    assert world.most_in_5_min <= 300
    assert all(feed.ready for feed in world.feeds), "nobody gave up"
    assert not any(feed.reconnects == 0 for feed in world.feeds)


def test_without_a_supervisor_the_reserves_keep_the_limit_too() -> None:
    world = Address(1, away=True)
    world.storm()
    world.run(world.now_s + 2_000)
    assert world.most_in_5_min <= 300
    assert all(feed.ready for feed in world.feeds)


def test_without_the_limiter_jitter_alone_would_pass_the_limit() -> None:
    """The control: the tests above would see a storm."""
    world = Address(1, limited=False)
    world.storm()
    assert world.most_in_5_min > 300


def test_feeds_that_lose_their_connection_together_do_not_come_back_together() -> None:
    world = Address(3)
    world.slowest_s = 0.05
    for feed in range(FEEDS):
        world.tell(feed, events.Started())
    world.run(700)
    assert all(feed.ready for feed in world.feeds)
    before = len(world.connects)
    world.restart(0.5)
    world.run(world.now_s + 60)
    arrived = world.connects[before:]
    assert len(arrived) >= FEEDS
    busiest = max(sum(1 for at_s in arrived if start <= at_s < start + 0.1) for start in arrived)
    assert busiest <= FEEDS // 5
