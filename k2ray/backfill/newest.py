"""Ask for the newest id of each symbol: every `prove_interval_s` of all, and soon of those whose feed connected anew.

What was traded while a feed was away shows as a gap with the symbol's next trade, which may be hours away. The
exchange's newest id shows it at once. However many feeds connect anew, and however often, one early round asks
for all of them, and the next is a pause away; each question waits for its weight like any other.

Next in the flow: `plan.py` compares the ids with what is committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterable, Sequence

from k2ray.backfill.fetch import RestReader
from k2ray.backfill.model import Newest
from k2ray.backfill.plan import Planner
from k2ray.clock import Clock
from k2ray.errors import BadFrame, ExchangeUnavailable
from k2ray.exchanges.base import RestAdapter
from k2ray.logs import get_logger

SOON_S = (0.2, 2.0)
"""An early round begins after a random time in between: feeds that were cut off together come back in this time."""

EARLY_PAUSE_S = 15.0
"""Between early rounds: a feed that flaps takes no more than four times the weight of the regular rounds."""

_log = get_logger(__name__)


class NewestIds:
    """Asks one exchange.

    Args:
        reader: Sends, within the budget.
        rest: Knows the questions.
        planner: Is told.
        channels: Those whose ids prove missing rows.
        interval_s: Between rounds that ask about all symbols.
        clock: Time.

    Attributes:
        early: How often symbols were asked about before their time.
        trouble: Why the last question has no answer; empty if it has.
    """

    def __init__(
        self,
        reader: RestReader,
        rest: RestAdapter,
        planner: Planner,
        channels: Sequence[str],
        interval_s: float,
        clock: Clock,
    ) -> None:
        self._reader = reader
        self._rest = rest
        self._planner = planner
        self._channels = channels
        self._interval_s = interval_s
        self._clock = clock
        self._soon: set[str] = set()
        self._wake = asyncio.Event()
        self._early_s = float("-inf")
        self.early = 0
        self.trouble = ""

    def soon(self, symbols: Iterable[str]) -> None:
        """Ask about these symbols within seconds; from the event loop's thread."""
        self._soon.update(symbols)
        if self._soon:
            self._wake.set()

    async def run(self, symbols: Sequence[str]) -> None:
        """Ask until cancelled."""
        while True:
            self._soon.clear()
            await self._ask(symbols)
            due_s = self._clock.monotonic_s() + self._interval_s
            while await self._is_early(due_s):
                chosen = [symbol for symbol in symbols if symbol in self._soon]
                self._soon.clear()
                self.early += bool(chosen)
                # Whoever could not be asked is asked again soon: the exchange is just coming back.
                self.soon(await self._ask(chosen))
                self._early_s = self._clock.monotonic_s()

    async def _is_early(self, due_s: float) -> bool:
        """Wait until somebody is to be asked about: True for an early round, False once all are due."""
        if not self._soon:
            self._wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), max(0.0, due_s - self._clock.monotonic_s()))
        if not self._soon:
            return False
        now_s = self._clock.monotonic_s()
        begin_s = max(now_s, self._early_s + EARLY_PAUSE_S) + random.uniform(*SOON_S)
        await asyncio.sleep(max(0.0, min(begin_s, due_s) - now_s))
        return begin_s < due_s

    async def _ask(self, symbols: Sequence[str]) -> list[str]:
        """Tell the planner the newest ids; return the symbols of the questions without an answer."""
        unanswered: list[str] = []
        for channel in self._channels:
            for question in self._rest.newest(channel, symbols):
                # The id is the newest as of before the question: what is sent meanwhile may be missing in it.
                asked_us = self._clock.now_us()
                try:
                    body = await self._reader.ask(question)
                    newest = self._rest.read_newest(channel, question, body)
                except (ExchangeUnavailable, BadFrame) as error:
                    self.trouble = str(error)
                    _log.warning("newest_ids_not_known", reason=str(error))
                    unanswered += question.symbols
                    continue
                self.trouble = ""
                asked_s = self._clock.monotonic_s()
                for symbol, newest_id in newest.items():
                    if symbol in symbols:
                        self._planner.newest((channel, symbol), Newest(newest_id, asked_us, asked_s))
        return unanswered
