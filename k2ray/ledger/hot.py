"""The intervals that the next rows will most likely continue, as arrays: a whole batch is a few comparisons.

A slot's `Box` says which continuing rows are certain; a closed box (no id is below its limit) sends them to `runs.py`.
What the arrays know better than the instrument's objects is written back before anybody reads those.
"""

from __future__ import annotations

import numpy as np

from k2ray.ledger.params import LedgerParams
from k2ray.ledger.runs import continuing_box
from k2ray.ledger.spaces import FOREVER, Instrument

CLOSED = -(1 << 63)


class HotIntervals:
    """Parallel arrays, one item a slot.

    Attributes:
        end: Id at which the hot interval ends.
        end_us: Event time of that row.
        newest_us: Newest event time of the space.
        taken: Rows taken since the last write-back.
        below_id: The box: ids below this.
        from_us: The box: event times from here,
        to_us: to here.
        shift: The interval's, see `intervals.is_mark`.
        number: The space's number.
        space: Its index in the instrument.
        interval: The interval's index in the space.
    """

    __slots__ = (
        "below_id",
        "end",
        "end_us",
        "from_us",
        "interval",
        "newest_us",
        "number",
        "shift",
        "space",
        "taken",
        "to_us",
    )

    def __init__(self, size: int = 64) -> None:
        self.end = np.zeros(size, dtype=np.int64)
        self.end_us = np.zeros(size, dtype=np.int64)
        self.newest_us = np.zeros(size, dtype=np.int64)
        self.taken = np.zeros(size, dtype=np.int64)
        self.below_id = np.full(size, CLOSED, dtype=np.int64)
        self.from_us = np.zeros(size, dtype=np.int64)
        self.to_us = np.zeros(size, dtype=np.int64)
        self.shift = np.zeros(size, dtype=np.int64)
        self.number = np.ones(size, dtype=np.int32)
        self.space = np.zeros(size, dtype=np.int32)
        self.interval = np.zeros(size, dtype=np.int32)

    def copy(self) -> HotIntervals:
        """Return a copy that shares nothing."""
        other = HotIntervals(0)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name).copy())
        return other

    def grow(self, slots: int) -> None:
        """Make room for `slots` slots."""
        size = len(self.end)
        if slots <= size:
            return
        larger = HotIntervals(max(slots, 2 * size))
        for name in self.__slots__:
            getattr(larger, name)[:size] = getattr(self, name)
            setattr(self, name, getattr(larger, name))

    def load(self, slot: int, instrument: Instrument, params: LedgerParams) -> None:
        """Take an instrument's hot interval and its box from its objects."""
        self.taken[slot] = 0
        self.below_id[slot] = CLOSED
        if not instrument.spaces:
            return
        index = instrument.hot
        space = instrument.spaces[index]
        at = len(space.intervals) - 1  # live rows continue the top one
        self.end[slot], self.end_us[slot] = space.intervals.hi[at], space.intervals.last_us[at]
        self.newest_us[slot], self.number[slot] = space.newest_us, space.number
        self.shift[slot] = space.intervals.shift[at]
        self.space[slot], self.interval[slot] = index, at
        box = continuing_box(instrument, index, at, params)
        if box is not None:
            self.below_id[slot] = box.below_id
            self.from_us[slot], self.to_us[slot] = max(box.from_us, -FOREVER), min(box.to_us, FOREVER)

    def write_back(self, slot: int, instrument: Instrument) -> None:
        """Bring the instrument's objects up to date."""
        if not self.taken[slot]:
            return
        space = instrument.spaces[int(self.space[slot])]
        space.intervals.extend(int(self.interval[slot]), int(self.end[slot]), int(self.end_us[slot]))
        space.newest_us = int(self.newest_us[slot])
        space.rows += int(self.taken[slot])
        instrument.hot = int(self.space[slot])
        self.taken[slot] = 0
