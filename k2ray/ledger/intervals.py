"""Sorted, disjoint intervals of covered ids, with the event times of a few of their rows.

An interval is (lo, hi]: `lo` is exclusive, `hi` is always the id of a row. Between two intervals lies a hole. An
interval knows (id, event time) of its first and last row and of a few rows between, its marks: enough to ask which
times an id could have. Not its job: which numbering an id belongs to, see `spaces.py`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

Point = tuple[int, int]
"""(id, event time in us) of a row."""

FIRST_SHIFT = 4
"""The first interval marks rows whose ids (from, id] contain a multiple of 2**4, its shift; later ones fewer."""

MARKS_KEPT = 64
"""Past this many marks an interval's shift grows with its span, and one mark stays for each multiple: always spread."""

STEPS_KEPT = 8
"""And both ends of so many of the longest times between marks: perhaps an unseen restart lies there.

And both ends of the steps back: beside one, only its own two rows say which times an id could have.
"""

STEPS_BACK_KEPT = 128
"""A space takes no more steps back than this, so that all of them are remembered."""

_LOW = -(1 << 63)
_HIGH = 1 << 63


def is_mark(start: int, row_id: int, shift: int) -> bool:
    """Tell whether the ids (start, row_id] contain a multiple of 2**shift: never a question of batches."""
    return (start >> shift) != (row_id >> shift)


def _shift_for(span: int) -> int:
    return (2 * span // MARKS_KEPT).bit_length()


class Intervals:
    """Covered ids of one space. All lists are parallel, one item an interval, sorted by id."""

    __slots__ = ("first_id", "first_us", "hi", "last_us", "lo", "marks", "shift")

    def __init__(self) -> None:
        self.lo: list[int] = []
        self.hi: list[int] = []
        self.first_id: list[int] = []
        self.first_us: list[int] = []
        self.last_us: list[int] = []
        self.marks: list[list[Point]] = []
        self.shift: list[int] = []

    def __len__(self) -> int:
        return len(self.lo)

    def copy(self) -> Intervals:
        """Return a copy that shares nothing mutable."""
        other = Intervals()
        other.lo, other.hi = self.lo[:], self.hi[:]
        other.first_id, other.first_us, other.last_us = self.first_id[:], self.first_us[:], self.last_us[:]
        other.marks = [marks[:] for marks in self.marks]
        other.shift = self.shift[:]
        return other

    def find(self, row_id: int) -> int:
        """Return the index of the last interval that starts below `row_id`, or -1."""
        return bisect_left(self.lo, row_id) - 1

    def covers(self, row_id: int) -> bool:
        """Tell whether an id is covered."""
        index = self.find(row_id)
        return index >= 0 and row_id <= self.hi[index]

    def neighbours(self, row_id: int) -> tuple[Point | None, Point | None]:
        """Return the nearest known rows at or below, and at or above, an id."""
        index = self.find(row_id)
        below: Point | None = (self.hi[index], self.last_us[index]) if index >= 0 else None
        if index < 0 or row_id > self.hi[index]:
            if index + 1 < len(self.lo):
                return below, (self.first_id[index + 1], self.first_us[index + 1])
            return below, None
        marks = self.marks[index]
        first = (self.first_id[index], self.first_us[index])
        lower: Point | None
        upper: Point
        up_to = bisect_right(marks, (row_id, _HIGH))
        if up_to:
            lower = marks[up_to - 1]
        elif first[0] <= row_id:
            lower = first
        else:
            lower = (self.hi[index - 1], self.last_us[index - 1]) if index > 0 else None
        from_on = bisect_left(marks, (row_id, _LOW))
        if first[0] >= row_id:
            upper = first
        elif from_on < len(marks):
            upper = marks[from_on]
        else:
            upper = (self.hi[index], self.last_us[index])
        return lower, upper

    def distance(self, start: int, row_id: int) -> int:
        """Return how far a row covering (start, row_id] is from covered ids: 0 covered, 1 it continues an interval."""
        index = self.find(row_id)
        nearest = _HIGH
        if index >= 0:
            if row_id <= self.hi[index]:
                return 0
            nearest = max(1, start + 1 - self.hi[index])
        if index + 1 < len(self.lo):
            nearest = min(nearest, self.lo[index + 1] + 1 - row_id)
        return nearest

    def oldest_us(self) -> int:
        """Return the oldest event time of a known row."""
        return min(*self.first_us, *self.last_us, *(mark[1] for marks in self.marks for mark in marks))

    def steps_back(self, back_us: int) -> int:
        """Return how often the clock went back by more than `back_us`, from one known row to the next."""
        steps, before = 0, -_HIGH
        for index in range(len(self.lo)):
            for time_us in (self.first_us[index], *(mark[1] for mark in self.marks[index]), self.last_us[index]):
                steps += time_us < before - back_us
                before = time_us
        return steps

    def add(self, start: int, row_id: int, time_us: int, step_us: int, back_us: int) -> None:
        """Cover (start, row_id] by a row whose own id is not covered; join what it touches.

        Where rows that are more than `step_us` apart in time become neighbours, they become marks: perhaps only one of
        them belongs here (an unseen restart), and rows that belong beside the other must not count as repeated. So do
        those where the clock went back by more than `back_us`.
        """
        point = (row_id, time_us)
        low = bisect_left(self.hi, start)  # the first interval that ends at or above the range's start
        high = bisect_right(self.lo, row_id) - 1  # the last one that starts at or below its end
        if low > high:
            self.lo.insert(low, start)
            self.hi.insert(low, row_id)
            self.first_id.insert(low, row_id)
            self.first_us.insert(low, time_us)
            self.last_us.insert(low, time_us)
            shift = max(FIRST_SHIFT, _shift_for(self.hi[-1] - self.lo[0]))
            self.marks.insert(low, [point] if is_mark(start, row_id, shift) else [])
            self.shift.insert(low, shift)
            return
        self.shift[low] = max(self.shift[low : high + 1])
        edges = [point] if is_mark(start, row_id, self.shift[low]) else []
        for index in range(low, high):
            ends = (self.hi[index], self.last_us[index]), (self.first_id[index + 1], self.first_us[index + 1])
            apart = abs(ends[1][1] - ends[0][1]) > step_us
            if apart or max(ends[0][1], time_us) - min(ends[1][1], time_us) > back_us:
                edges += [ends[0], point, ends[1]]
        if self.hi[low] > row_id:
            if low == high and (abs(time_us - self.first_us[low]) > step_us or time_us - self.first_us[low] > back_us):
                edges = [point, (self.first_id[low], self.first_us[low])]
            self.first_id[low], self.first_us[low] = point
        self.lo[low] = min(self.lo[low], start)
        if self.hi[high] > row_id:
            self.hi[low], self.last_us[low] = self.hi[high], self.last_us[high]
        else:
            if low == high and (abs(time_us - self.last_us[low]) > step_us or self.last_us[low] - time_us > back_us):
                edges = [(self.hi[low], self.last_us[low]), point]
            self.hi[low], self.last_us[low] = point
        marks = self.marks[low]
        for index in range(low + 1, high + 1):
            marks.extend(self.marks[index])
        for edge in edges:
            at = bisect_left(marks, edge)
            if at == len(marks) or marks[at] != edge:
                marks.insert(at, edge)
        self._thin(low, back_us)
        self._drop(low + 1, high + 1)

    def extend(self, index: int, row_id: int, time_us: int) -> None:
        """Move an interval's end to a later row that stays below the next interval."""
        self.hi[index] = row_id
        self.last_us[index] = time_us

    def mark(self, index: int, start: int, row_id: int, time_us: int, back_us: int) -> None:
        """Remember a row that has just continued the interval, if it is a mark."""
        if is_mark(start, row_id, self.shift[index]):
            self.marks[index].append((row_id, time_us))
            self._thin(index, back_us)

    def join_lowest(self, back_us: int) -> tuple[int, int]:
        """Cover the lowest hole without rows; return it as (from, to]."""
        hole = (self.hi[0], self.lo[1])
        if self.last_us[0] - self.first_us[1] > back_us:
            known = self.marks[0][-1:] + self.marks[1][:1]
            edges = (self.hi[0], self.last_us[0]), (self.first_id[1], self.first_us[1])
            self.marks[0].extend(edge for edge in edges if edge not in known)
        self.marks[0].extend(self.marks[1])
        self.hi[0], self.last_us[0] = self.hi[1], self.last_us[1]
        self.shift[0] = max(self.shift[:2])
        self._thin(0, back_us)
        self._drop(1, 2)
        return hole

    def _thin(self, index: int, back_us: int) -> None:
        if len(self.marks[index]) <= MARKS_KEPT:
            return
        span = self.marks[index][-1][0] - self.lo[index]
        # By the span alone: edges that crowd together must not cost the rest of the interval its marks.
        shift = self.shift[index] = max(self.shift[index], _shift_for(span))
        marks = self.marks[index]
        by_step = sorted(range(1, len(marks)), key=lambda at: marks[at - 1][1] - marks[at][1])[:STEPS_KEPT]
        edges = {at - 1 for at in by_step} | set(by_step)
        back = [at for at in range(1, len(marks)) if marks[at - 1][1] - marks[at][1] > back_us]
        back = sorted(back, key=lambda at: marks[at][1] - marks[at - 1][1])[: 2 * STEPS_BACK_KEPT]
        edges |= {at - 1 for at in back} | set(back)
        kept: list[Point] = []
        bucket: int | None = None
        for at, mark in enumerate(marks):
            if at in edges or mark[0] >> shift != bucket:
                kept.append(mark)
                bucket = mark[0] >> shift
        self.marks[index] = kept

    def _drop(self, start: int, end: int) -> None:
        if start < end:
            for column in (self.lo, self.hi, self.first_id, self.first_us, self.last_us, self.marks, self.shift):
                del column[start:end]
