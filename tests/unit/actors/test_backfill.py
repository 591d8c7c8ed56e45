"""The backfill's share of the budget that all actors of an address take from."""

from __future__ import annotations

from typing import Any

import pytest

from actors import backfill
from actors.backfill import ExchangeBudget
from k2ray.errors import BadInput


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
