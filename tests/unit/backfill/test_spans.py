from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from k2ray.backfill.spans import count, intersect, of_ids, of_ranges, subtract, union

SPANS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=8
)


def ids(spans: list[tuple[int, int]]) -> set[int]:
    return {number for first, last in spans for number in range(first, last + 1)}


def canonical(spans: list[tuple[int, int]]) -> bool:
    return all(first <= last for first, last in spans) and all(
        before[1] + 1 < after[0] for before, after in pairwise(spans)
    )


@given(SPANS, SPANS)
def test_spans_are_sets_of_ids(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    for found, wanted in (
        (union(left), ids(left)),
        (subtract(left, right), ids(left) - ids(right)),
        (intersect(left, right), ids(left) & ids(right)),
    ):
        assert ids(found) == wanted
        assert canonical(found)
        assert count(found) == len(wanted)


@given(st.lists(st.integers(0, 40), max_size=30))
def test_ids_become_spans_whatever_their_order(numbers: list[int]) -> None:
    found = of_ids(np.array(numbers, dtype=np.int64))
    assert ids(found) == set(numbers)
    assert canonical(found)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4)), max_size=20))
def test_rows_cover_from_their_start_to_their_id(rows: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in rows], dtype=np.int64)
    ends = np.array([start + width for start, width in rows], dtype=np.int64)
    wanted = {number for start, width in rows for number in range(start + 1, start + width + 1)}
    assert ids(of_ranges(starts, ends)) == wanted
