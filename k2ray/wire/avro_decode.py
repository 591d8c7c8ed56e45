"""Avro records of one schema -> one batch in a table's wire schema, all records together, field by field.

A reader is compiled once for a writer's schema: fields are matched by name, those that we do not know are read over,
those that a writer does not have are null where the table allows that. A record that cannot be read is refused alone,
with its reason; the others come out in their order.

Not its job: which schema an id stands for (`schemas.py`), finding the records (`records.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from k2ray.errors import UnreadableSchema
from k2ray.model import DECIMAL, REPEATED, STRING_MAP, TIMESTAMP, WIRE_SCHEMAS
from k2ray.wire import avro_columns as columns
from k2ray.wire.avro_cursor import REASONS, SURPLUS, Bits, Buffer, Cursor
from k2ray.wire.avro_schema import RecordShape, Shape

_LIST = pa.list_(pa.string())
_FIXED_SIZES = {"boolean": 1, "float": 4, "double": 8}
_MILLISECOND = 1_000


class RecordReader:
    """Reads records that one schema wrote into batches of one table.

    Args:
        shape: The writer's schema.
        table: Whose wire schema comes out.

    Raises:
        UnreadableSchema: The schema lacks a column that has no nulls, or has it in a form that this table cannot hold.
    """

    def __init__(self, shape: RecordShape, table: str) -> None:
        self._wire = WIRE_SCHEMAS[table]
        self._shape = shape
        there = dict(shape.fields)
        for column in self._wire:
            if column.name in there:
                _check(column, there[column.name])
            elif not column.nullable:
                raise UnreadableSchema(f"record {shape.name} has no field {column.name}")
        for name, field in shape.fields:
            if name not in self._wire.names:
                _check_passable(name, field)

    def read(self, values: Sequence[bytes], skip: int = 0) -> tuple[pa.RecordBatch, list[tuple[int, str]]]:
        """Return the rows of those records that can be read, and (index, reason) of each other one.

        Args:
            values: Records; Avro's bytes begin at `skip`.
            skip: Bytes of framing before them.
        """
        batch, cursor = self._read(values, skip)
        bad = np.flatnonzero(cursor.why)
        if not len(bad):
            return batch, []
        names = [name for name, _ in self._shape.fields] + ["the record"]
        refused = [(int(row), REASONS[int(cursor.why[row])].format(field=names[cursor.field[row]])) for row in bad]
        # Once more without them: what they left in the dictionaries is nobody's value.
        good, _ = self._read([values[row] for row in np.flatnonzero(cursor.why == 0).tolist()], skip)
        return good, refused

    def _read(self, values: Sequence[bytes], skip: int) -> tuple[pa.RecordBatch, Cursor]:
        buffer = Buffer(values)
        cursor = Cursor(buffer, buffer.starts, buffer.ends)
        cursor.skip(skip)
        found: dict[str, pa.Array] = {}
        for number, (name, shape) in enumerate(self._shape.fields):
            cursor.now = number
            at = self._wire.get_field_index(name)
            if at < 0:
                _pass_over(cursor, shape)
            else:
                found[name] = _column(cursor, shape, self._wire.field(at))
        cursor.now = len(self._shape.fields)
        cursor.mark(cursor.pos != cursor.end, SURPLUS)
        made = [
            found[column.name] if column.name in found else pa.nulls(len(values), column.type) for column in self._wire
        ]
        return pa.RecordBatch.from_arrays(made, schema=self._wire), cursor


def _column(cursor: Cursor, shape: Shape, column: pa.Field) -> pa.Array:
    present = _present(cursor, shape)
    if shape.kind == "null":
        return _nothing(column, len(cursor))
    if present is None:
        return _values(cursor, shape, column.type)
    if not column.nullable:
        columns.refuse_nulls(cursor, present)
    if not present.any():
        return _nothing(column, len(cursor))
    part = cursor.some(present)
    values = _values(part, shape, column.type)
    cursor.rejoin(present, part)
    return columns.scatter(values, present)


def _nothing(column: pa.Field, rows: int) -> pa.Array:
    if not column.nullable and column.type == REPEATED:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([""], pa.string()))
    return pa.nulls(rows, column.type)


def _present(cursor: Cursor, shape: Shape) -> Bits | None:
    """Read the union's branch; None if every record has a value."""
    if not shape.branches or not len(cursor):
        return None
    common = cursor.common_branch(shape.branches)
    if common is not None:
        return None if common != shape.null_branch else np.zeros(len(cursor), dtype=np.bool_)
    taken = cursor.branch(shape.branches)
    if shape.null_branch is None:
        return None
    present: Bits = taken != shape.null_branch
    return None if present.all() else present


def _values(cursor: Cursor, shape: Shape, kind: pa.DataType) -> pa.Array:
    if kind == REPEATED:
        return columns.repeated(cursor)
    if kind == pa.string():
        return columns.texts(cursor, *cursor.spans())
    if kind == DECIMAL:
        spans = cursor.fixed(shape.size) if shape.kind == "fixed" else cursor.spans()
        return columns.decimals(cursor, *spans, shape.scale)
    if kind == _LIST:
        return columns.list_column(*columns.lists(cursor, 1), None)
    if kind == STRING_MAP:
        return columns.map_column(*columns.lists(cursor, 2), None)
    numbers = cursor.integer()
    if kind == TIMESTAMP:
        if shape.logical == "timestamp-millis":
            numbers = numbers * _MILLISECOND
        return pa.Array.from_buffers(TIMESTAMP, len(numbers), [None, pa.py_buffer(numbers)])
    return pa.array(numbers)


def _pass_over(cursor: Cursor, shape: Shape) -> None:
    present = _present(cursor, shape)
    part = cursor if present is None else cursor.some(present)
    if shape.kind in ("int", "long", "enum"):
        part.integer()
    elif shape.kind in ("string", "bytes"):
        part.spans()
    elif shape.kind in ("array", "map"):
        columns.lists(part, 1 if shape.kind == "array" else 2)
    elif shape.kind != "null":
        part.skip(shape.size if shape.kind == "fixed" else _FIXED_SIZES[shape.kind])
    if present is not None:
        cursor.rejoin(present, part)


def _check(column: pa.Field, shape: Shape) -> None:
    """Raise where the writer's field cannot become the column."""
    kind = column.type
    if kind in (REPEATED, pa.string()):
        fits = shape.kind == "string"
    elif kind == DECIMAL:
        fits = shape.kind in ("bytes", "fixed") and shape.logical == "decimal" and 0 <= shape.scale <= 38
    elif kind == TIMESTAMP:
        fits = shape.kind == "long" and shape.logical in ("timestamp-micros", "timestamp-millis")
    elif kind in (_LIST, STRING_MAP):
        fits = shape.kind == ("array" if kind == _LIST else "map") and shape.inner == Shape("string")
    else:
        fits = shape.kind in ("int", "long")
    if not fits and not (shape.kind == "null" and column.nullable):
        raise UnreadableSchema(f"field {column.name} is {shape.logical or shape.kind}, which is no {kind}")


def _check_passable(name: str, shape: Shape) -> None:
    if shape.kind in ("array", "map") and shape.inner not in (Shape("string"), Shape("bytes")):
        raise UnreadableSchema(f"field {name}: an {shape.kind} of {shape.inner.kind if shape.inner else '?'}")
