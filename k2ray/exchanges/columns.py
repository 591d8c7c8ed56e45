"""Columns of a batch, built whole: constants, dictionaries, exact decimals, times. No Python object a row.

A value that does not fit raises ArrowInvalid for the column; the caller finds the row.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2ray import model

MICROSECONDS_FROM = 100_000_000_000_000
"""As ms this would be the year 5138, as us it is 1973: larger numbers are microseconds."""

_LONGEST = 8_192
_TO_DECIMAL = pc.CastOptions.safe(model.DECIMAL)
_TO_TEXT = pc.CastOptions.safe(pa.string())


@functools.lru_cache(maxsize=64)
def _constant(value: str) -> pa.DictionaryArray:
    return dictionary(np.zeros(_LONGEST, dtype=np.int32), pa.array([value]))


def constant(value: str, rows: int) -> pa.DictionaryArray:
    """Return `value` in every row; memory is shared between batches."""
    if rows <= _LONGEST:
        return _constant(value).slice(0, rows)
    return dictionary(np.zeros(rows, dtype=np.int32), pa.array([value]))


def nulls(kind: pa.DataType, rows: int) -> pa.Array:
    """Return null in every row. Not a shared slice: Arrow's IPC writes a slice's list offsets in full."""
    return pa.nulls(rows, kind)


def dictionary(codes: npt.NDArray[np.int32], values: pa.Array) -> pa.DictionaryArray:
    """Return a dictionary column of `values[codes]`. Codes are trusted to be in range."""
    return pa.DictionaryArray.from_buffers(model.REPEATED, len(codes), [None, pa.py_buffer(codes)], values)


def decimals(*columns: Sequence[str]) -> list[pa.Array]:
    """Return exact decimal(38,18) columns of equally long columns of texts.

    All columns go through one cast, since its fixed cost is that of some hundred rows.

    Raises:
        pa.ArrowInvalid: A text is no number, is too large, or has more than 18 places.
    """
    rows = len(columns[0])
    texts: list[str] = []
    for column in columns:
        texts += column
    cast = pc.cast(pa.array(texts, pa.string()), options=_TO_DECIMAL)
    return [cast.slice(at * rows, rows) for at in range(len(columns))]


def microseconds(times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return exchange times as microseconds, whether they came as ms or us (told by magnitude)."""
    if len(times) and times.min() >= MICROSECONDS_FROM:
        return times
    return np.where(times >= MICROSECONDS_FROM, times, times * 1_000)


def timestamps(times_us: npt.NDArray[np.int64]) -> pa.Array:
    """Return a timestamp column of UTC microseconds."""
    return pa.Array.from_buffers(model.TIMESTAMP, len(times_us), [None, pa.py_buffer(times_us)])


def texts_of(ids: pa.Array) -> pa.Array:
    """Return integers as decimal texts."""
    return pc.cast(ids, options=_TO_TEXT)


def maps(rows: int, entries: Sequence[tuple[str, npt.NDArray[np.bool_] | None, pa.Array]]) -> pa.Array:
    """Return a map<string,string> column; a row without entries is null.

    Args:
        rows: Number of rows.
        entries: (key, mask, values): the values of the key, one a row; the mask says which rows have it, None all.
    """
    if not entries:
        return nulls(model.STRING_MAP, rows)
    masks = [np.ones(rows, dtype=np.bool_) if mask is None else mask for _, mask, _ in entries]
    if not any(mask.any() for mask in masks):
        return nulls(model.STRING_MAP, rows)
    held = np.stack(masks, axis=1)
    offsets = np.zeros(rows + 1, dtype=np.int32)
    np.cumsum(held.sum(axis=1), out=offsets[1:])
    # Entry (row, key) lies at key * rows + row of the concatenated values; taken row by row.
    row_at, key_at = np.nonzero(held)
    values = pa.concat_arrays([values for _, _, values in entries]).take(pa.array(key_at * rows + row_at))
    keys = pa.array([key for key, _, _ in entries]).take(pa.array(key_at))
    empty = np.diff(offsets) == 0
    mask = pa.array(empty) if empty.any() else None
    return pa.MapArray.from_arrays(pa.array(offsets), keys, values, type=model.STRING_MAP, mask=mask)


def previous_ids(
    codes: npt.NDArray[np.int32], ids: npt.NDArray[np.int64], last: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return for each row the id before it of the same code, and move `last` on.

    Where there is none, or the ids did not grow, the row covers itself alone: id - 1.

    Args:
        codes: Symbol codes of the rows, in the order received.
        ids: The rows' ids.
        last: Code -> last id seen so far, -1 for none; updated in place.
    """
    if not len(codes):
        return ids
    order = np.argsort(codes, kind="stable")
    sorted_codes, sorted_ids = codes[order], ids[order]
    before = np.empty_like(sorted_ids)
    before[1:] = sorted_ids[:-1]
    first = np.empty(len(order), dtype=np.bool_)
    first[0] = True
    np.not_equal(sorted_codes[1:], sorted_codes[:-1], out=first[1:])
    before[first] = last[sorted_codes[first]]
    end = np.append(first[1:], True)
    last[sorted_codes[end]] = sorted_ids[end]
    before = np.where((before < 0) | (before >= sorted_ids), sorted_ids - 1, before)
    result = np.empty_like(before)
    result[order] = before
    return result
