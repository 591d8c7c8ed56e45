"""Where values lie in a buffer -> Arrow columns, without a Python object a row.

Not its job: finding where they lie (`avro_cursor.py`).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2ray.model import DECIMAL, REPEATED, STRING_MAP
from k2ray.wire.avro_cursor import KEEP, NOT_TEXT, NULL, TRUNCATED, WIDE, Bits, Buffer, Cursor, Ints, Words

_SHORT = 16
_FEW = 4
_NEVER_OVER = 15
"""Bytes: 2**119 is less than 10**38."""


def texts(cursor: Cursor, start: Ints, length: Ints) -> pa.Array:
    """Return the spans as strings; a record whose span is no UTF-8 is marked."""
    array = _gather(cursor.buffer, start, length)
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        bad = np.array([not _is_text(value) for value in array.cast(pa.binary()).to_pylist()], dtype=np.bool_)
        cursor.mark(bad, NOT_TEXT)
        array = _gather(cursor.buffer, start, np.where(bad, 0, length))
    return array


def repeated(cursor: Cursor) -> pa.DictionaryArray:
    """Read a text of each record, of which few are different; returns a dictionary of strings."""
    if not len(cursor):
        return pa.array([], pa.string()).dictionary_encode().cast(REPEATED)
    before = cursor.pos
    short = cursor.short_texts()
    if short is not None:
        codes, texts_found = _told_apart(short)
        raw = [text.to_bytes(8, "little")[1 : 1 + (text & 0xFF) // 2] for text in texts_found]
        if all(map(_is_text, raw)):
            return pa.DictionaryArray.from_arrays(codes, pa.array(raw, pa.binary()).cast(pa.string()))
        cursor.pos = before
    return _longer(cursor, *cursor.spans())


def _told_apart(numbers: Words) -> tuple[pa.Array, list[int]]:
    """Return the number of each value, and the values."""
    if (numbers == numbers[0]).all():
        return pa.array(np.zeros(len(numbers), dtype=np.int32)), [int(numbers[0])]
    encoded = pa.array(numbers).dictionary_encode()
    return encoded.indices, encoded.dictionary.to_pylist()


def _longer(cursor: Cursor, start: Ints, length: Ints) -> pa.DictionaryArray:
    rows = len(start)
    if length.max() > _SHORT:
        return texts(cursor, start, length).dictionary_encode().cast(REPEATED)
    buffer = cursor.buffer
    low = buffer.little[start] & KEEP[np.minimum(length, 8)]
    high = None
    if length.max() > 8:
        high = buffer.little[start + 8] & KEEP[np.maximum(length - 8, 0)]
    codes, found = _few(low, high, length)
    if codes is None:
        parts = [low, length.view(np.uint64)] + ([high] if high is not None else [])
        codes, found = _many(parts)
    values, bad = [], np.zeros(rows, dtype=np.bool_)
    for code, row in enumerate(found):
        raw = buffer.bytes[start[row] : start[row] + length[row]].tobytes()
        if _is_text(raw):
            values.append(raw.decode())
        else:
            values.append("")
            bad |= codes == code
    if bad.any():
        cursor.mark(bad, NOT_TEXT)
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(values, pa.string()))


def _few(low: np.ndarray, high: np.ndarray | None, length: Ints) -> tuple[np.ndarray | None, list[int]]:
    """Tell a few distinct values apart by comparing with each; None where there are more."""
    codes = np.full(len(low), -1, dtype=np.int32)
    left: Bits = np.ones(len(low), dtype=np.bool_)
    found: list[int] = []
    while len(found) < _FEW:
        row = int(left.argmax())
        same = (low == low[row]) & (length == length[row])
        if high is not None:
            same &= high == high[row]
        codes[same] = len(found)
        found.append(row)
        left &= ~same
        if not left.any():
            return codes, found
    return None, []


def _many(parts: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    codes: np.ndarray | None = None
    count = 1
    for part in parts:
        encoded = pa.array(part).dictionary_encode()
        mine = encoded.indices.to_numpy().astype(np.int64)
        codes = mine if codes is None else codes * len(encoded.dictionary) + mine
        count = len(encoded.dictionary)
    assert codes is not None
    final = pa.array(codes).dictionary_encode() if count > 1 or len(parts) > 1 else encoded
    indices = final.indices.to_numpy().astype(np.int32)
    rows = np.zeros(len(final.dictionary), dtype=np.int64)
    rows[indices] = np.arange(len(indices))
    return indices, rows.tolist()


def decimals(cursor: Cursor, start: Ints, length: Ints, scale: int) -> pa.Array:
    """Return big-endian two's complement spans as decimals of (38, 18); a record that does not fit is marked."""
    buffer = cursor.buffer
    cursor.mark(length > 16, WIDE)
    size = np.clip(length, 0, 16)
    near = np.minimum(size, 8)
    # A window begins at the number's first byte; what is not the number's own is shifted out behind it, the sign kept.
    low = buffer.big[start + size - near].astype(np.uint64).view(np.int64)
    low = np.where(near > 0, low >> np.minimum((8 - near) * 8, 63), 0)
    high = low >> 63
    if size.max(initial=0) > 8:
        first = buffer.big[start].astype(np.uint64).view(np.int64)
        high = np.where(size > 8, first >> np.minimum((16 - size) * 8, 63), high)
    if scale < DECIMAL.scale or size.max(initial=0) > _NEVER_OVER:
        low, high = _within(cursor, low, high, scale)
    wide = np.empty((len(low), 2), dtype=np.int64)
    wide[:, 0] = low
    wide[:, 1] = high
    array = pa.Array.from_buffers(pa.decimal128(38, scale), len(low), [None, pa.py_buffer(wide)])
    return array if scale == DECIMAL.scale else _rescaled(cursor, array)


def _within(cursor: Cursor, low: Ints, high: Ints, scale: int) -> tuple[Ints, Ints]:
    """Mark the records whose number does not fit, and make it 0."""
    unsigned = low.view(np.uint64)
    # Arrow does not check that a rescaled number still fits (it wraps around), so the bound is the smaller scale's own.
    bound = 10 ** (DECIMAL.precision - max(0, DECIMAL.scale - scale))
    above, rest = np.int64(bound >> 64), np.uint64(bound & 0xFFFFFFFFFFFFFFFF)
    over = (high > above) | ((high == above) & (unsigned >= rest))
    below, rest = np.int64(-bound >> 64), np.uint64(-bound & 0xFFFFFFFFFFFFFFFF)
    under = (high < below) | ((high == below) & (unsigned <= rest))
    wrong = over | under
    if wrong.any():
        cursor.mark(wrong, WIDE)
        low, high = np.where(wrong, 0, low), np.where(wrong, 0, high)
    return low, high


def _rescaled(cursor: Cursor, array: pa.Array) -> pa.Array:
    try:
        return pc.cast(array, DECIMAL)
    except pa.ArrowInvalid:
        pass
    bad = np.zeros(len(array), dtype=np.bool_)
    for row in range(len(array)):
        try:
            pc.cast(array.slice(row, 1), DECIMAL)
        except pa.ArrowInvalid:
            bad[row] = True
    cursor.mark(bad, WIDE)
    return pc.cast(pc.if_else(pa.array(bad), pa.scalar(None, array.type), array), DECIMAL)


def lists(cursor: Cursor, texts_an_item: int) -> tuple[Ints, list[pa.Array]]:
    """Read Avro's blocks of texts (an array) or pairs of texts (a map) of each record.

    Args:
        cursor: At each record's first block.
        texts_an_item: 1 for an array, 2 for a map.

    Returns:
        Offsets of each record's items, and the items: their texts, or their keys and their values.
    """
    rows = len(cursor)
    items: list[tuple[Ints, list[tuple[Ints, Ints]]]] = []
    left = np.zeros(rows, dtype=np.int64)
    open_rows: Bits = np.ones(rows, dtype=np.bool_)
    while open_rows.any():
        asking = open_rows & (left == 0)
        if asking.any():
            part = cursor.some(asking)
            count = part.integer()
            sized = count < 0
            if sized.any():
                sub = part.some(sized)
                sub.integer()  # the block's size in bytes, for readers that skip it
                part.rejoin(sized, sub)
            # Each text takes a byte or more: a larger count is a lie.
            room = part.end - part.pos
            count = np.abs(count)
            part.mark((count < 0) | (count * texts_an_item > room), TRUNCATED)
            cursor.rejoin(asking, part)
            left[asking] = np.where(part.why > 0, 0, count)
            open_rows &= ~(asking & (left == 0))
        reading = open_rows & (left > 0) & (cursor.why == 0)
        open_rows &= cursor.why == 0
        if reading.any():
            part = cursor.some(reading)
            spans = [part.spans() for _ in range(texts_an_item)]
            cursor.rejoin(reading, part)
            items.append((np.flatnonzero(reading), spans))
            left[reading] -= 1
    return _assemble(cursor, rows, items, texts_an_item)


def _assemble(
    cursor: Cursor, rows: int, items: list[tuple[Ints, list[tuple[Ints, Ints]]]], texts_an_item: int
) -> tuple[Ints, list[pa.Array]]:
    counts = np.zeros(rows + 1, dtype=np.int64)
    if not items:
        return counts, [pa.array([], pa.string()) for _ in range(texts_an_item)]
    owner = np.concatenate([owners for owners, _ in items])
    order = np.argsort(owner, kind="stable")
    counts[1:] = np.cumsum(np.bincount(owner, minlength=rows))
    columns = []
    for at in range(texts_an_item):
        start = np.concatenate([spans[at][0] for _, spans in items])[order]
        length = np.concatenate([spans[at][1] for _, spans in items])[order]
        part = Cursor(cursor.buffer, start, start + length)
        columns.append(texts(part, start, length))
        if part.why.any():
            bad = np.zeros(rows, dtype=np.bool_)
            bad[owner[order][part.why > 0]] = True
            cursor.mark(bad, NOT_TEXT)
    return counts, columns


def list_column(offsets: Ints, items: list[pa.Array], absent: Bits | None) -> pa.Array:
    """Return a list<string> column."""
    mask = None if absent is None else pa.array(absent)
    found: pa.Array = pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)), items[0], type=pa.list_(pa.string()), mask=mask
    )
    return found


def map_column(offsets: Ints, items: list[pa.Array], absent: Bits | None) -> pa.Array:
    """Return a map<string, string> column."""
    mask = None if absent is None else pa.array(absent)
    found: pa.Array = pa.MapArray.from_arrays(
        pa.array(offsets.astype(np.int32)), items[0], items[1], type=STRING_MAP, mask=mask
    )
    return found


def scatter(values: pa.Array, present: Bits) -> pa.Array:
    """Return the values in the places where they are present, null elsewhere."""
    at = np.cumsum(present) - 1
    return values.take(pa.array(at, pa.int64(), mask=~present))


def refuse_nulls(cursor: Cursor, present: Bits) -> None:
    """Mark the records that have none of a column that has no nulls."""
    cursor.mark(~present, NULL)


def _gather(buffer: Buffer, start: Ints, length: Ints) -> pa.Array:
    rows = len(start)
    offsets = np.zeros(rows + 1, dtype=np.int32)
    np.cumsum(length, out=offsets[1:])
    shift = start - offsets[:-1]
    at = np.arange(offsets[-1], dtype=np.int64) + np.repeat(shift, length)
    data = buffer.bytes[at]
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(data))


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
