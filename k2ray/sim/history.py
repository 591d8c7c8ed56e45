"""When each trade happened, so that REST can answer for trades long gone without keeping them.

Only times are kept, once a block; everything else follows from the ordinal (`market.py`). What the exchange's clock
said and when it really was are kept apart: the first may step back.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

MAX_BLOCKS = 1_000_000
"""Blocks kept for each symbol, 24 bytes each; past that the older half is forgotten."""


class History:
    """The times of one symbol's trades in its current epoch."""

    def __init__(self) -> None:
        self._firsts = array("q")
        self._times = array("q")
        self._happened = array("q")
        self._stepped_back = False
        self._gone = 0
        self.end = 0

    @property
    def begin(self) -> int:
        """Return the oldest ordinal that is still known."""
        return max(self._gone, self._firsts[0] if self._firsts else self.end)

    def append(self, first: int, count: int, event_us: int, happened_us: int | None = None) -> None:
        """Note that the trades [first, first + count) happened.

        Args:
            first: Their first ordinal.
            count: How many.
            event_us: The exchange's clock.
            happened_us: The machine's, which never steps back here; None: the same.
        """
        if len(self._firsts) >= MAX_BLOCKS:
            for column in (self._firsts, self._times, self._happened):
                del column[: MAX_BLOCKS // 2]
        self._stepped_back = self._stepped_back or (bool(self._times) and event_us < self._times[-1])
        self._firsts.append(first)
        self._times.append(event_us)
        self._happened.append(event_us if happened_us is None else happened_us)
        self.end = first + count

    def clear(self) -> None:
        """Forget everything: the ids begin anew."""
        for column in (self._firsts, self._times, self._happened):
            del column[:]
        self._stepped_back = False
        self._gone = self.end = 0

    def forget(self) -> None:
        """Forget all trades until now; the ids go on."""
        self._gone = self.end

    def forget_before(self, happened_us: int) -> None:
        """Forget the trades that happened before a moment."""
        block = bisect_left(self._happened, happened_us)
        self._gone = max(self._gone, self._firsts[block] if block < len(self._firsts) else self.end)

    def times(self, ordinals: Sequence[int]) -> list[int]:
        """Return the event times of ordinals within [begin, end)."""
        return [self._times[bisect_right(self._firsts, ordinal) - 1] for ordinal in ordinals]

    def first_at(self, time_us: int) -> int:
        """Return the first ordinal whose event time is `time_us` or later."""
        if self._stepped_back:
            return next((first for first, at in zip(self._firsts, self._times, strict=True) if at >= time_us), self.end)
        block = bisect_left(self._times, time_us)
        return self._firsts[block] if block < len(self._firsts) else self.end
