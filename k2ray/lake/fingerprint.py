"""Whether two sets of rows are the same, whatever their order: the number of rows, and a sum of a hash of each.

Every column takes part, and all of a row's values are mixed before the sum, so that values which change places between
rows are noticed. It guards against mistakes, not against somebody who searches for collisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Words = npt.NDArray[np.uint64]

_NULL = np.uint64(0x9E3779B97F4A7C15)
_FACTOR = np.uint64(0xFF51AFD7ED558CCD)
_FACTOR2 = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)


@dataclass(frozen=True)
class Fingerprint:
    """Rows, whatever their order.

    Attributes:
        rows: How many.
        digest: Sum of the rows' hashes, modulo 2**64.
    """

    rows: int = 0
    digest: int = 0

    def __add__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint(self.rows + other.rows, (self.digest + other.digest) % 2**64)


def fingerprint(rows: pa.Table, columns: Sequence[str]) -> Fingerprint:
    """Return the fingerprint of rows.

    Args:
        rows: Any chunks, strings plain or as dictionaries.
        columns: Which take part, in this order.
    """
    return sum((_of_batch(batch, columns) for batch in rows.to_batches()), Fingerprint())


def _of_batch(batch: pa.RecordBatch, columns: Sequence[str]) -> Fingerprint:
    total = np.zeros(batch.num_rows, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for place, name in enumerate(columns, start=1):
            total = _mixed(total * np.uint64(31) + _hash(batch.column(name)) + np.uint64(place))
        return Fingerprint(batch.num_rows, int(total.sum(dtype=np.uint64)))


def _hash(array: pa.Array) -> Words:
    """Return a hash of each value; equal values have equal ones, however they are encoded."""
    words: Words
    kind = array.type
    if array.null_count == len(array):
        return np.full(len(array), _NULL, dtype=np.uint64)
    if pa.types.is_dictionary(kind):
        codes = array.indices.fill_null(0).to_numpy(zero_copy_only=False)
        words = _hash(array.dictionary)[codes]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        words = _of_strings(array.cast(pa.large_string()))
    elif pa.types.is_decimal(kind):
        low_high = np.frombuffer(array.buffers()[1], dtype=np.uint64)
        low_high = low_high[2 * array.offset : 2 * (array.offset + len(array))].reshape(-1, 2)
        words = _mixed(_mixed(low_high[:, 0]) + low_high[:, 1])
    elif pa.types.is_map(kind):
        keys, items = _hash(array.keys), _hash(array.items)
        # `keys` and `items` ignore a slice's offset; the offsets count from the whole array's start.
        words = _of_lists(_mixed(keys * np.uint64(31) + items), array.offsets.to_numpy())
    elif pa.types.is_list(kind):
        words = _of_lists(_hash(array.values), array.offsets.to_numpy())
    elif pa.types.is_boolean(kind):
        words = array.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint64)
    elif pa.types.is_timestamp(kind) or pa.types.is_integer(kind):
        words = _mixed(array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64))
    else:
        raise AssertionError(f"the model has a type without a fingerprint: {kind}")
    if array.null_count:
        words[array.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return words


def _of_strings(array: pa.Array) -> Words:
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    octets = np.empty(0, dtype=np.uint8) if data is None else np.frombuffer(data, dtype=np.uint8)
    return _of_lists(octets[offsets[0] : offsets[-1]].astype(np.uint64), offsets - offsets[0])


def _of_lists(elements: Words, offsets: npt.NDArray[np.integer]) -> Words:
    """Return a hash of each slice of `elements`, in which each counts with its place."""
    elements = elements[offsets[0] : offsets[-1]]
    starts = offsets.astype(np.int64) - int(offsets[0])
    lengths = np.diff(starts)
    places = np.arange(len(elements), dtype=np.int64) - np.repeat(starts[:-1], lengths)
    placed = _mixed(elements * np.uint64(1024) + places.astype(np.uint64) + np.uint64(1))
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(placed, dtype=np.uint64)])
    return _mixed(sums[starts[1:]] - sums[starts[:-1]] + lengths.astype(np.uint64))


def _mixed(words: Words) -> Words:
    """Spread each bit over all (the finaliser of MurmurHash3)."""
    words = (words ^ (words >> _SHIFT)) * _FACTOR
    words = (words ^ (words >> _SHIFT)) * _FACTOR2
    mixed: Words = words ^ (words >> _SHIFT)
    return mixed
