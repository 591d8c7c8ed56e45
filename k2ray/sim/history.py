"""When each trade happened, so that REST can answer for trades long gone without keeping them.

Only the time is kept, once a block; everything else follows from the ordinal (`market.py`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

MAX_BLOCKS = 1_000_000
"""Blocks kept for each symbol, 16 bytes each; past that the older half is forgotten."""


class History:
    """The times of one symbol's trades in its current epoch."""

    def __init__(self) -> None:
        self._firsts = array("q")
        self._times = array("q")
        self.end = 0

    @property
    def begin(self) -> int:
        """Return the oldest ordinal that is still known."""
        return self._firsts[0] if self._firsts else self.end

    def append(self, first: int, count: int, event_us: int) -> None:
        """Note that the trades [first, first + count) happened."""
        if len(self._firsts) >= MAX_BLOCKS:
            del self._firsts[: MAX_BLOCKS // 2]
            del self._times[: MAX_BLOCKS // 2]
        self._firsts.append(first)
        self._times.append(event_us)
        self.end = first + count

    def clear(self) -> None:
        """Forget everything: the ids begin anew."""
        del self._firsts[:]
        del self._times[:]
        self.end = 0

    def times(self, ordinals: Sequence[int]) -> list[int]:
        """Return the event times of ordinals within [begin, end)."""
        return [self._times[bisect_right(self._firsts, ordinal) - 1] for ordinal in ordinals]

    def first_at(self, time_us: int) -> int:
        """Return the first ordinal whose event time is `time_us` or later."""
        block = bisect_left(self._times, time_us)
        return self._firsts[block] if block < len(self._firsts) else self.end
