"""What the backfill has of others: a share of the address's budget, and word of feeds that were away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors import backfill
from actors.backfill import ExchangeBudget, follow_feeds
from k2ray.errors import BadInput, SupervisorUnavailable
from k2ray.log.partition import partition_of
from k2ray.settings import load_settings
from tests.support.backfill_world import until


class Permits:
    """Refuses as a process's own reserve does when no supervisor answers, so many times."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.calls: list[tuple[Any, ...]] = []

    async def permit(self, *what: Any) -> None:
        self.calls.append(("permit", *what))
        if self.refusals:
            self.refusals -= 1
            raise BadInput("can never be granted")

    async def ban(self, *what: Any) -> None:
        self.calls.append(("ban", *what))

    async def observe(self, *what: Any) -> None:
        self.calls.append(("observe", *what))


async def test_a_page_that_is_more_than_the_reserve_waits_for_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "RETRY_S", 0.01)
    permits: Any = Permits(refusals=2)
    await ExchangeBudget(permits, "binance").permit(25)
    assert permits.calls == [("permit", "binance", "weight", 25)] * 3


async def test_bans_and_counts_are_told_to_all() -> None:
    permits: Any = Permits(refusals=0)
    budget = ExchangeBudget(permits, "binance")
    await budget.ban(60)
    await budget.observe(1_200)
    assert permits.calls == [("ban", "binance", "weight", 60), ("observe", "binance", "weight", 1_200)]


async def test_the_symbols_of_a_feed_that_was_away_are_told_though_the_supervisor_was_away_too() -> None:
    symbols = [f"S{number}USDT" for number in range(20)]
    exchange = {"symbols": symbols, "connections": 2}
    arguments = {"exchanges": {"binance": exchange}, "backfill": {"interval_s": 0.01}, "kafka": {"partitions": 8}}
    settings = load_settings(arguments=arguments, environ={})
    told: list[list[str]] = []

    class Line:
        reconnects = 0
        away = False

        async def call(self, method: str) -> Any:
            assert method == "status"
            if self.away:
                raise SupervisorUnavailable("it is just being born")
            feeds = [("feed:binance:0#1", 0), ("feed:binance:1#1", self.reconnects)]
            actors = [{"name": name, "role": "feed", "ready": True, "detail": {"reconnects": n}} for name, n in feeds]
            return {"actors": actors}

    line: Any = Line()
    following = asyncio.create_task(follow_feeds(line, settings, "binance", lambda about: told.append(list(about))))
    await until(lambda: len(told) == 2, "both are told of at first")
    line.away, line.reconnects = True, 1
    await asyncio.sleep(0.05)
    line.away = False
    await until(lambda: len(told) == 3, "the second one reconnected")
    following.cancel()
    assert told[2] == [symbol for symbol in symbols if partition_of("binance", symbol, 8) % 2 == 1]
    assert sorted([*told[0], *told[1]]) == sorted(symbols)
