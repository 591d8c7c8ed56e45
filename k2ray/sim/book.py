"""Order books: `@depth` streams and the REST snapshot that they start from. Pure and deterministic.

A symbol's book is a loop of updates: the n-th one sets one price level to a quantity, 0 removes it, and the content
of row n mod `BOOK_LOOP` never changes. So the book after any number of updates follows from that number alone, and a
snapshot and the streams cannot disagree. Update ids step by one; an event tells those of its time, `U` to `u`.

Only trades and quotes are in the truth: a depth stream proves itself by `U` and `u` and by the snapshot.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from k2ray.sim.frames import Form
from k2ray.sim.market import Market, Tape, decimal_text

BOOK_LOOP = 4096
LEVELS = 400
FAST_S = 0.1
SLOW_EVERY = 10
"""`@depth` comes once a second, `@depth@100ms` ten times."""

_FIRST_ID = 9_000_000_001


class Book:
    """One symbol's book.

    Args:
        seed: What it follows from, with the symbol's name.
        symbol: Upper case.
        tape: Whose first quote the book lies around.
        first_id: Id of the first update.
    """

    def __init__(self, seed: int, symbol: str, tape: Tape, first_id: int) -> None:
        rng = np.random.default_rng([seed, 3, zlib.crc32(symbol.encode())])
        self.first_id = first_id
        tick = int(tape.asks[0] - tape.bids[0])
        depth = np.arange(LEVELS) * tick
        self._prices: list[str] = decimal_text(np.concatenate((tape.bids[0] - depth, tape.asks[0] + depth)))
        level = np.minimum(rng.geometric(0.02, size=BOOK_LOOP) - 1, LEVELS - 1)
        self._keys = (level + LEVELS * rng.integers(0, 2, size=BOOK_LOOP)).astype(np.int64)
        quantity = rng.integers(1, 5_000, size=BOOK_LOOP) * 100_000
        removed = (rng.random(BOOK_LOOP) < 0.2) & (level > 0)
        self._quantities = np.where(removed, 0, quantity).astype(np.int64)

    def _written(self, first: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which levels the updates [first, end) set, and each one's last quantity."""
        rows = np.arange(max(first, end - BOOK_LOOP), end) % BOOK_LOOP
        latest = np.full(2 * LEVELS, -1, dtype=np.int64)
        latest[self._keys[rows]] = self._quantities[rows]
        keys = np.nonzero(latest >= 0)[0]
        return keys, latest[keys]

    def _sides(self, keys: NDArray[np.int64], quantities: NDArray[np.int64]) -> tuple[list[Any], list[Any]]:
        rows = [[self._prices[key], text] for key, text in zip(keys.tolist(), decimal_text(quantities), strict=True)]
        bids = int(np.searchsorted(keys, LEVELS))
        return rows[:bids], rows[bids:]

    def snapshot(self, updates: int, limit: int) -> dict[str, Any]:
        """Return the book after so many updates, as REST answers it."""
        keys, quantities = self._written(updates - BOOK_LOOP, updates)
        there = quantities > 0
        bids, asks = self._sides(keys[there], quantities[there])
        return {"lastUpdateId": self.first_id + updates - 1, "bids": bids[:limit], "asks": asks[:limit]}

    def event(self, symbol: str, first: int, end: int, event_time: int) -> dict[str, Any]:
        """Return what the updates [first, end) changed, as the stream tells it."""
        bids, asks = self._sides(*self._written(first, end))
        ids = {"U": self.first_id + first, "u": self.first_id + end - 1}
        return {"e": "depthUpdate", "E": event_time, "s": symbol, **ids, "b": bids, "a": asks}


@dataclass(frozen=True)
class DepthEvent:
    """One event of one stream: the updates [first, end) of a symbol."""

    symbol: int
    stream: str
    first: int
    end: int
    event_us: int


class Books:
    """All symbols' books, and how far they are.

    Args:
        market: Whose symbols.
        updates_per_s: Of each symbol.
    """

    def __init__(self, market: Market, updates_per_s: float) -> None:
        self._names = [state.name for state in market.symbols]
        self._books = [
            Book(market.seed, state.name, state.tape, _FIRST_ID + index * 10_000_000)
            for index, state in enumerate(market.symbols)
        ]
        self._rate = updates_per_s
        self._ticks = 0
        self._fast = self._slow = 0

    def tick(self, elapsed_s: float, event_us: int) -> list[DepthEvent]:
        """Let a tenth of a second end, and return the events that are due, if anything changed.

        Args:
            elapsed_s: Since the start; must grow.
            event_us: The exchange's time.
        """
        self._ticks += 1
        now = max(self._fast, int(elapsed_s * self._rate))
        spans = [("depth@100ms", self._fast, now)]
        self._fast = now
        if self._ticks % SLOW_EVERY == 0:
            spans.append(("depth", self._slow, now))
            self._slow = now
        return [
            DepthEvent(symbol, f"{name.lower()}@{stream}", first, end, event_us)
            for symbol, name in enumerate(self._names)
            for stream, first, end in spans
            if end > first
        ]

    def encode(self, event: DepthEvent, form: Form) -> bytes:
        """Return an event's text."""
        at = event.event_us if form.microseconds else event.event_us // 1000
        data = self._books[event.symbol].event(self._names[event.symbol], event.first, event.end, at)
        return msgspec.json.encode({"stream": event.stream, "data": data} if form.combined else data)

    def snapshot(self, symbol: int, limit: int) -> dict[str, Any]:
        """Return a symbol's book as REST answers it."""
        return self._books[symbol].snapshot(self._fast, limit)
