"""When newest ids are asked for: of all regularly, of those that were away soon, and never in a storm."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from k2ray.backfill import newest
from k2ray.backfill.newest import NewestIds
from k2ray.clock import SystemClock
from k2ray.errors import ExchangeUnavailable
from k2ray.exchanges import rest_adapter
from tests.support.backfill_world import BackfillWorld, until

SYMBOLS = [f"S{number}USDT" for number in range(60)]  # three tickers
PAUSE_S = 0.4


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newest, "SOON_S", (0.0, 0.02))
    monkeypatch.setattr(newest, "EARLY_PAUSE_S", PAUSE_S)


class Asked:
    """Plays the reader and the planner.

    Attributes:
        questions: Of each the time, the early rounds until then, and the symbols.
        told: What the planner was told.
        failures: Questions that stay unanswered.
    """

    def __init__(self) -> None:
        self.asker: NewestIds | None = None
        self.questions: list[tuple[float, int, tuple[str, ...]]] = []
        self.told: list[tuple[str, int]] = []
        self.failures = 0

    async def ask(self, question: Any) -> bytes:
        assert self.asker is not None
        self.questions.append((time.monotonic(), self.asker.early, question.symbols))
        if self.failures:
            self.failures -= 1
            raise ExchangeUnavailable("it is just coming back")
        return msgspec.json.encode([{"symbol": symbol, "lastId": 7} for symbol in question.symbols])

    def newest(self, stream: tuple[str, str], named: Any) -> None:
        self.told.append((stream[1], named.id))


@contextlib.asynccontextmanager
async def asking(asked: Any, interval_s: float = 1_000) -> AsyncIterator[NewestIds]:
    """Run it, past its first round."""
    asker = asked.asker = NewestIds(asked, rest_adapter("binance"), asked, ["trades"], interval_s, SystemClock())
    task = asyncio.create_task(asker.run(SYMBOLS))
    try:
        await until(lambda: len(asked.told) >= len(SYMBOLS), "the first round")
        yield asker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_only_symbols_that_were_away_are_asked_about_early() -> None:
    asked = Asked()
    async with asking(asked) as asker:
        asker.soon([SYMBOLS[3], SYMBOLS[40], "NOT_OURS"])
        await until(lambda: len(asked.told) == len(SYMBOLS) + 2, "an early round")
    assert asked.questions[-1][2] == (SYMBOLS[3], SYMBOLS[40])
    assert (asker.early, len(asked.questions)) == (1, 3 + 1)


async def test_reconnects_of_many_feeds_again_and_again_make_no_storm() -> None:
    asked = Asked()
    async with asking(asked) as asker:
        for number in range(60):
            asker.soon(SYMBOLS[number : number + 1])
            await asyncio.sleep(0.02)
        await until(lambda: {symbol for *_, about in asked.questions[3:] for symbol in about} == set(SYMBOLS), "all")
    early = asked.questions[3:]
    pauses = [later - at for (at, number, _), (later, next_number, _) in pairwise(early) if next_number > number]
    assert all(pause_s >= PAUSE_S for pause_s in pauses)
    assert len(pauses) + 1 == asker.early <= 2 + (early[-1][0] - early[0][0]) / PAUSE_S


async def test_who_could_not_be_asked_is_asked_again_soon() -> None:
    asked = Asked()
    async with asking(asked) as asker:
        asked.failures = 1
        asker.soon(SYMBOLS[:2])
        await until(lambda: asker.trouble, "there is no answer")
        await until(lambda: asked.told[-2:] == [(SYMBOLS[0], 7), (SYMBOLS[1], 7)], "but soon")
    assert (asker.trouble, asker.early) == ("", 2)


async def test_early_rounds_do_not_put_off_the_regular_ones() -> None:
    asked = Asked()
    async with asking(asked, interval_s=0.3) as asker:
        for _ in range(40):
            asker.soon(SYMBOLS[:1])
            await asyncio.sleep(0.02)
        await until(lambda: asked.told.count((SYMBOLS[-1], 7)) >= 3, "all are asked about")


async def test_a_thin_symbols_last_trades_missed_in_an_outage_are_found_soon(tmp_path: Path) -> None:
    """Nobody knew of them until the symbol's next trade, or the next regular question."""
    world = BackfillWorld(tmp_path, prove_interval_s=1_000)
    world.publish([1, 2, 3])
    async with world.running():
        await until(lambda: world.session.status().proofs, "the first round")
        world.exchange.newest["BTCUSDT"] = 8  # and the feed was away
        world.session.connected_anew(["BTCUSDT"])
        await until(lambda: world.stored() == list(range(1, 9)), "they are fetched")
    assert world.session.status().asked_early == 1
