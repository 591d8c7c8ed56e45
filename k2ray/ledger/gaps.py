"""What is missing: the holes between a space's intervals, less what was sealed as lost for good."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from k2ray.ledger.spaces import Space

Range = tuple[int, int]
"""Ids (from, to]."""


@dataclass(frozen=True)
class Gap:
    """Ids first_id to last_id, both inclusive, of which no row was seen.

    Attributes:
        exchange: The instrument's exchange.
        symbol: The instrument's symbol.
        sequence_space: Which numbering the ids belong to.
        first_id: The lowest missing id.
        last_id: The highest missing id.
        since_us: Event time of the last row below the hole.
        until_us: Event time of the first row above it: when it could be noticed.
        sealed: Lost for good: nobody waits for it. A row that comes all the same is new, and stored.
    """

    exchange: str
    symbol: str
    sequence_space: str
    first_id: int
    last_id: int
    since_us: int
    until_us: int
    sealed: bool


def holes(space: Space) -> Iterator[tuple[int, Range]]:
    """Yield the index of the interval below, and the ids, of each hole."""
    intervals = space.intervals
    for index in range(len(intervals) - 1):
        yield index, (intervals.hi[index], intervals.lo[index + 1])


def missing(space: Space) -> Iterator[tuple[int, Range, bool]]:
    """Yield the index of the interval below, the ids, and whether they are sealed, of each piece of each hole."""
    ends = [high for _, high in space.sealed]
    for index, (low, high) in holes(space):
        at = bisect_left(ends, low + 1) if ends else 0
        while at < len(ends) and space.sealed[at][0] < high:
            start, end = space.sealed[at]
            if start > low:
                yield index, (low, start), False
            low, piece_end = max(start, low), min(end, high)
            yield index, (low, piece_end), True
            low = piece_end
            at += 1
        if low < high:
            yield index, (low, high), False


def seal_range(space: Space, start: int, end: int) -> int:
    """Seal (start, end]; return how many missing ids it newly closes."""
    closed = 0
    for _, (low, high), sealed in missing(space):
        if not sealed:
            closed += max(0, min(high, end) - max(low, start))
    ranges: list[Range] = []
    for low, high in space.sealed:
        if high < start or low > end:
            ranges.append((low, high))
        else:
            start, end = min(start, low), max(end, high)
    ranges.append((start, end))
    space.sealed = sorted(ranges)
    return closed
