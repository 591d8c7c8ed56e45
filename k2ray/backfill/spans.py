"""Sets of ids as sorted, disjoint, inclusive spans (first, last), and what can be done with them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Span = tuple[int, int]
"""Ids first to last, both inclusive."""

Int64s = npt.NDArray[np.int64]


def union(spans: Iterable[Span]) -> list[Span]:
    """Return the same ids as sorted, disjoint spans that do not touch."""
    found: list[Span] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def subtract(spans: Iterable[Span], taken: Iterable[Span]) -> list[Span]:
    """Return the ids of `spans` that are not in `taken`."""
    left: list[Span] = []
    away = union(taken)
    at = 0
    for first, last in union(spans):
        while at and away[at - 1][1] >= first:
            at -= 1
        while at < len(away) and away[at][1] < first:
            at += 1
        while at < len(away) and away[at][0] <= last:
            if away[at][0] > first:
                left.append((first, away[at][0] - 1))
            first = away[at][1] + 1
            at += 1
        if first <= last:
            left.append((first, last))
    return left


def intersect(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """Return the ids that are in both."""
    mine = union(spans)
    return subtract(mine, subtract(mine, others))


def count(spans: Iterable[Span]) -> int:
    """Return how many ids disjoint spans hold."""
    return sum(last - first + 1 for first, last in spans)


def of_ids(ids: Int64s) -> list[Span]:
    """Return the spans of some ids, in any order and repeated or not."""
    if not len(ids):
        return []
    unique = np.unique(ids)
    breaks = np.flatnonzero(np.diff(unique) > 1)
    firsts = unique[np.concatenate(([0], breaks + 1))]
    lasts = unique[np.concatenate((breaks, [len(unique) - 1]))]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def of_ranges(starts: Int64s, ends: Int64s) -> list[Span]:
    """Return the ids of many ranges (start, end], as rows cover them."""
    if not len(starts):
        return []
    if (ends - starts == 1).all():
        return of_ids(ends)
    return union(zip((starts + 1).tolist(), ends.tolist(), strict=True))
