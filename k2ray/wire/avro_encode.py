"""A batch -> one Avro record a row, column by column: each column becomes its bytes, Arrow joins them row by row.

A column of repeated texts encodes its dictionary once; numbers and decimals are laid out in numpy. Encoding row by row
in Python costs 12 us a trade; this costs 1.

Not its job: framing and schema ids (`framing.py`), which schema is ours (`avro_schema.py`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2ray.model import DECIMAL, REPEATED, STRING_MAP, TIMESTAMP

_LIST = pa.list_(pa.string())
_EMPTY = pa.scalar(b"", pa.binary())
_SEVEN = np.uint64(7)
_SHIFTS = np.arange(0, 70, 7, dtype=np.uint64)
_NULL, _VALUE = b"\x00", b"\x02"
_FEW = 32
"""Texts; the calls into Arrow for more of them at once cost as much as encoding so many one by one."""


def encode_records(batch: pa.RecordBatch, prefix: bytes = b"") -> list[bytes]:
    """Return each row as an Avro record of the table's own schema (`avro_schema.SCHEMAS`).

    Args:
        batch: Rows in a wire schema.
        prefix: Put before each record: its framing.
    """
    rows = batch.num_rows
    if not rows:
        return []
    parts: list[pa.Array | pa.Scalar] = [pa.scalar(prefix, pa.binary())]
    for field, column in zip(batch.schema, batch.columns, strict=True):
        parts.append(_column(field, column))
    joined = pc.binary_join_element_wise(*_merged(parts), _EMPTY)
    if isinstance(joined, pa.Scalar):  # every column is the same in every row
        return [joined.as_py()] * rows
    values: list[bytes] = joined.to_pylist()
    return values


def _merged(parts: list[pa.Array | pa.Scalar]) -> list[pa.Array | pa.Scalar]:
    """Join constants that stand beside each other."""
    merged: list[pa.Array | pa.Scalar] = []
    for part in parts:
        if isinstance(part, pa.Scalar) and merged and isinstance(merged[-1], pa.Scalar):
            merged[-1] = pa.scalar(merged[-1].as_py() + part.as_py(), pa.binary())
        else:
            merged.append(part)
    return merged


def _column(field: pa.Field, column: pa.Array) -> pa.Array | pa.Scalar:
    if not field.nullable:
        return _values(column)
    if column.null_count == len(column):
        return pa.scalar(_NULL, pa.binary())
    if column.null_count == 0:
        return pc.binary_join_element_wise(pa.scalar(_VALUE, pa.binary()), _values(column), _EMPTY)
    present = column.is_valid()
    encoded = pc.binary_join_element_wise(pa.scalar(_VALUE, pa.binary()), _values(column.drop_null()), _EMPTY)
    at = np.cumsum(present.to_numpy(zero_copy_only=False)) - 1
    return pc.if_else(present, encoded.take(pa.array(np.maximum(at, 0))), pa.scalar(_NULL, pa.binary()))


def _values(column: pa.Array) -> pa.Array | pa.Scalar:
    """Return the encoded values of a column without nulls."""
    kind = column.type
    if kind == REPEATED:
        if len(column.dictionary) > _FEW:
            return _texts(column.dictionary).take(column.indices)
        few = [_text(text) for text in column.dictionary.to_pylist()]
        return pa.scalar(few[0], pa.binary()) if len(few) == 1 else pa.array(few, pa.binary()).take(column.indices)
    if kind == pa.string():
        return _texts(column)
    if kind == TIMESTAMP:
        return _from_matrix(*_integers(column.view(pa.int64()).to_numpy()))
    if kind == pa.int64():
        return _from_matrix(*_integers(column.to_numpy()))
    if kind == DECIMAL:
        return _decimals(column)
    if kind == _LIST:
        return _blocks(column.value_lengths().to_numpy(), _texts(column.flatten()))
    if kind == STRING_MAP:
        return _maps(column)
    raise TypeError(f"no Avro for a column of {kind}")


def _texts(column: pa.Array) -> pa.Array:
    raw = column.cast(pa.binary())
    sizes = pc.binary_length(raw).to_numpy(zero_copy_only=False).astype(np.int64)
    return pc.binary_join_element_wise(_from_matrix(*_integers(sizes)), raw, _EMPTY)


def _text(text: str) -> bytes:
    raw = text.encode()
    left, size = len(raw) << 1, bytearray()
    while left > 0x7F:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    size.append(left)
    return bytes(size) + raw


def _integers(values: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return zigzag variable-length integers as rows of 10 bytes at most, and how many of them count."""
    zigzag = ((values << 1) ^ (values >> 63)).view(np.uint64)
    if len(zigzag):
        width = _size(int(zigzag.max()))
        if _size(int(zigzag.min())) == width:  # times, ids, lengths: there is nothing to cut off
            matrix = ((zigzag[:, None] >> _SHIFTS[:width]) & np.uint64(0x7F)).astype(np.uint8)
            matrix[:, :-1] |= 0x80
            return matrix, np.full(len(zigzag), width)
    bits = _bit_length(zigzag)
    sizes = np.maximum((bits + 6) // 7, 1)
    width = int(sizes.max(initial=1))
    matrix = ((zigzag[:, None] >> _SHIFTS[:width]) & np.uint64(0x7F)).astype(np.uint8)
    matrix |= (np.arange(width) < (sizes - 1)[:, None]).astype(np.uint8) << 7
    return matrix, sizes


def _size(zigzag: int) -> int:
    return max(1, (zigzag.bit_length() + 6) // 7)


def _bit_length(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    filled = values
    for shift in (1, 2, 4, 8, 16, 32):
        filled = filled | (filled >> np.uint64(shift))
    return np.bitwise_count(filled).astype(np.int64)


def _decimals(column: pa.Array) -> pa.Array:
    """Return big-endian two's complement of as few bytes as hold the number, behind their count."""
    wide = np.frombuffer(column.buffers()[1], dtype="<i8")[column.offset * 2 : (column.offset + len(column)) * 2]
    low, high = wide[0::2], wide[1::2]
    # Bits of the magnitude and one for the sign: of a negative number, those of its complement.
    flip = high >> 63
    high_bits = _bit_length((high ^ flip).view(np.uint64))
    low_bits = _bit_length((low ^ flip).view(np.uint64))
    bits = np.where(high_bits > 0, high_bits + 64, low_bits) + 1
    sizes = (bits + 7) // 8
    width = int(sizes.max())
    number = np.empty((len(column), 2), dtype=">i8")
    number[:, 0], number[:, 1] = high, low
    whole = number.view(np.uint8).reshape(len(column), 16)
    # Left-aligned: byte k of the number is byte 16 - size + k of the whole.
    at = np.minimum(16 - sizes[:, None] + np.arange(width), 15)
    matrix = np.empty((len(column), width + 1), dtype=np.uint8)
    matrix[:, 0] = sizes * 2  # zigzag of a count below 64
    matrix[:, 1:] = np.take_along_axis(whole, at, axis=1)
    return _from_matrix(matrix, sizes + 1)


def _maps(column: pa.Array) -> pa.Array:
    lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
    first, last = column.offsets[0].as_py(), column.offsets[len(column)].as_py()
    keys = _texts(column.keys.slice(first, last - first))
    values = _texts(column.items.slice(first, last - first))
    return _blocks(lengths, pc.binary_join_element_wise(keys, values, _EMPTY))


def _blocks(counts: npt.NDArray[np.int64], items: pa.Array) -> pa.Array:
    """Return arrays or maps: one block of all items and the end mark, or the end mark alone."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=offsets[1:])
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), items), _EMPTY)
    heads = _from_matrix(*_integers(counts.astype(np.int64)))
    ends = pc.if_else(pa.array(counts > 0), pa.scalar(b"\x00", pa.binary()), _EMPTY)
    return pc.binary_join_element_wise(heads, joined, ends, _EMPTY)


def _from_matrix(matrix: npt.NDArray[np.uint8], sizes: npt.NDArray[np.int64]) -> pa.Array:
    """Return the first `sizes[i]` bytes of each row."""
    offsets = np.zeros(len(sizes) + 1, dtype=np.int32)
    np.cumsum(sizes, out=offsets[1:])
    width = matrix.shape[1]
    data = matrix.ravel() if sizes.min(initial=width) == width else matrix[np.arange(width) < sizes[:, None]]
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(sizes), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))]
    )
