"""Time as an argument: the core never reads a clock, the shells pass one in.

Wall time is UTC microseconds since 1970 (`_us`); durations and deadlines use the monotonic clock in seconds (`_s`).
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the shells need to know about time."""

    def now_us(self) -> int:
        """Return UTC microseconds since 1970. May step when the machine's clock is set."""

    def monotonic_s(self) -> float:
        """Return seconds that never step back; only differences mean anything."""


class SystemClock:
    """The machine's clocks."""

    def now_us(self) -> int:
        """Return UTC microseconds since 1970."""
        return time.time_ns() // 1_000

    def monotonic_s(self) -> float:
        """Return the monotonic clock in seconds."""
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to; for tests and simulations."""

    def __init__(self, now_us: int = 1_700_000_000_000_000, monotonic_s: float = 0.0) -> None:
        self._now_us = now_us
        self._monotonic_s = monotonic_s

    def now_us(self) -> int:
        """Return the set wall time in UTC microseconds."""
        return self._now_us

    def monotonic_s(self) -> float:
        """Return the set monotonic time in seconds."""
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Move both clocks forward by `seconds`."""
        self._now_us += round(seconds * 1_000_000)
        self._monotonic_s += seconds
