"""decimal(38,18) columns as whole numbers in numpy: of 64 bits where nothing is lost, else Python's integers.

Arrow needs 90 ns to cut one wide decimal to fewer digits, DuckDB 1,000; here it is a handful of operations on whole
columns (6 ns). Everything is exact: what does not fit 64 bits is an array of objects, which the same code adds up,
multiplies and compares, some fifty times slower.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2ray.model import DECIMAL

SCALE = 18
"""Digits after the point of the tables' decimals."""
NARROW_SCALE = 8
"""Most instruments have at most 8 decimals; with them 64 bits reach 92 thousand million."""

Numbers = npt.NDArray[Any]
"""int64, or Python's integers as objects."""

_CUT = 10 ** (SCALE - NARROW_SCALE)
_LIMB = 32
_LIMB_MASK = 2**_LIMB - 1
_WORD = 64
_WORD_MASK = 2**_WORD - 1
# High words within this cannot make a quotient that needs more than 64 bits.
_HIGH_LIMIT = 2**63 * _CUT // 2**_WORD - 3


def read_narrow(column: pa.Array) -> npt.NDArray[np.int64] | None:
    """Return decimals times 10**NARROW_SCALE, or None if one has more digits than that or does not fit 64 bits.

    The quotient is guessed in doubles, which is wrong by 2,048 at most; the remainder to the guess fits 64 bits and so
    comes out right of arithmetic modulo 2**64, and corrects the guess.
    """
    low, high = _words(column)
    if len(high) and (high.max() > _HIGH_LIMIT or high.min() < -_HIGH_LIMIT):
        return None
    quotient = ((high * 2.0**_WORD + low) / _CUT).astype(np.int64)
    remainder = (low - quotient.view(np.uint64) * np.uint64(_CUT)).view(np.int64)
    correction = remainder // _CUT
    if np.any(correction * _CUT != remainder):
        return None
    corrected: npt.NDArray[np.int64] = quotient + correction
    return corrected


def read_wide(column: pa.Array) -> npt.NDArray[np.object_]:
    """Return decimals times 10**SCALE as Python's integers."""
    low, high = _words(column)
    return _joined(high, low)


def decimal_array(numbers: npt.NDArray[np.object_], absent: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Return Python's integers as decimals: each is divided by 10**SCALE.

    Args:
        numbers: Whole numbers.
        absent: True where there is none.

    Raises:
        OverflowError: A number has more than 38 digits.
    """
    if len(numbers) and (max(numbers) >= 10**38 or min(numbers) <= -(10**38)):
        raise OverflowError("a number has more than 38 digits")
    words = np.empty((len(numbers), 2), dtype=np.uint64)
    words[:, 0] = (numbers & _WORD_MASK).astype(np.uint64)
    words[:, 1] = (numbers >> _WORD).astype(np.int64).view(np.uint64)
    validity = None if absent is None else pa.array(~absent).buffers()[1]
    return pa.Array.from_buffers(DECIMAL, len(numbers), [validity, pa.py_buffer(words)])


def sums(numbers: Numbers, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    """Return the exact sum of each run; run i is numbers[starts[i]:starts[i + 1]], the last one goes to the end."""
    if numbers.dtype == object:
        return _object_sums(numbers, starts)
    high, low = _half_sums(numbers, starts)
    return _whole(high, low)


def sums_of_products(left: Numbers, right: Numbers, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    """Return the exact sum of left times right of each run."""
    if left.dtype == object or right.dtype == object:
        return _object_sums(left.astype(object) * right.astype(object), starts)
    # Each number is high * 2**32 + low; low is not negative. Low times low needs all 64 bits, without a sign.
    left_high, left_low = left >> _LIMB, left & _LIMB_MASK
    right_high, right_low = right >> _LIMB, right & _LIMB_MASK
    total: npt.NDArray[np.object_] = np.zeros(len(starts), dtype=object)
    for product, shift in (
        (left_low.view(np.uint64) * right_low.view(np.uint64), 0),
        (left_high * right_low, _LIMB),
        (left_low * right_high, _LIMB),
        (left_high * right_high, 2 * _LIMB),
    ):
        if product.any():
            high, low = _half_sums(product, starts)
            total += _whole(high, low) << shift
    return total


def _object_sums(numbers: Numbers, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    total: npt.NDArray[np.object_] = np.add.reduceat(numbers, starts)
    return total


def _whole(high: npt.NDArray[np.object_], low: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    whole: npt.NDArray[np.object_] = (high << _LIMB) + low
    return whole


def _half_sums(numbers: npt.NDArray[Any], starts: npt.NDArray[np.int64]) -> tuple[Any, Any]:
    """Return the runs' sums of the upper and of the lower 32 bits: neither overflows below 2**31 rows."""
    high = np.add.reduceat((numbers >> numbers.dtype.type(_LIMB)).view(np.int64), starts)
    low = np.add.reduceat((numbers & numbers.dtype.type(_LIMB_MASK)).view(np.int64), starts)
    return high.astype(object), low.astype(object)


def _words(column: pa.Array) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Return the low and the high half of each 128-bit number."""
    words = np.frombuffer(column.buffers()[1], dtype=np.uint64)[2 * column.offset : 2 * (column.offset + len(column))]
    return words[0::2], words[1::2].view(np.int64)


def _joined(high: npt.NDArray[np.int64], low: npt.NDArray[np.uint64]) -> npt.NDArray[np.object_]:
    joined: npt.NDArray[np.object_] = (high.astype(object) << _WORD) + low.astype(object)
    return joined
