"""Whole numbers of decimals are exact at every size, and say when 64 bits are too few."""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from k2ray.model import DECIMAL
from k2ray.query.decimals import decimal_array, read_narrow, read_wide, sums, sums_of_products

CUT = 10**10
whole = st.integers(-(10**38) + 1, 10**38 - 1)
narrow = st.one_of(st.integers(-(2**62), 2**62), st.integers(-1000, 1000))


def column(numbers: list[int]) -> pa.Array:
    """Return whole numbers as decimals of 18 digits after the point."""
    exactly = Context(prec=60)
    return pa.array([exactly.scaleb(Decimal(number), -18) for number in numbers], DECIMAL)


@given(st.lists(narrow))
@example([2**63 - 2**36, -(2**63) + 2**36, 0, -1])
def test_numbers_of_8_decimals_are_read_as_they_are(numbers: list[int]) -> None:
    found = read_narrow(column([number * CUT for number in numbers]))
    assert found is not None
    assert found.tolist() == numbers


@given(st.lists(narrow.map(lambda number: number * CUT)), st.one_of(whole, st.just(CUT // 2)))
@example([], 2**63 * CUT)
@example([], -(2**63) * CUT - CUT)
@example([1], 1)
def test_a_number_of_more_digits_is_refused_not_rounded(numbers: list[int], other: int) -> None:
    found = read_narrow(column([*numbers, other]))
    if found is None:
        assert other % CUT or abs(other // CUT) > 2**63 - 2**36
    else:
        assert (found.astype(object) * CUT).tolist() == [*numbers, other]


@given(st.lists(whole), st.integers(0, 3))
def test_wide_numbers_go_both_ways(numbers: list[int], skipped: int) -> None:
    given_column = column(numbers)[skipped:]
    found = read_wide(given_column)
    assert found.tolist() == numbers[skipped:]
    assert decimal_array(found).equals(given_column)


def test_absent_numbers_are_null_and_39_digits_are_refused() -> None:
    made = decimal_array(np.array([5, 0], dtype=object), np.array([False, True]))
    assert made.to_pylist() == [Decimal("0.000000000000000005"), None]
    with pytest.raises(OverflowError):
        decimal_array(np.array([10**38], dtype=object))


@given(st.lists(st.tuples(narrow, narrow), min_size=1), st.sets(st.integers(1, 20)))
def test_sums_of_runs_are_exact_in_both_widths(pairs: list[tuple[int, int]], cuts: set[int]) -> None:
    starts = np.array([0, *sorted(cut for cut in cuts if cut < len(pairs))], dtype=np.int64)
    ends = [*starts[1:].tolist(), len(pairs)]
    runs = [pairs[start:end] for start, end in zip(starts.tolist(), ends, strict=True)]
    for kind in (np.int64, object):
        left, right = (np.array(numbers, dtype=kind) for numbers in zip(*pairs, strict=True))
        assert sums(left, starts).tolist() == [sum(one for one, _ in run) for run in runs]
        products = sums_of_products(left, right, starts)
        assert products.tolist() == [sum(one * other for one, other in run) for run in runs]
