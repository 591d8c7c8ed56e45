"""The Avro schemas of our records, and what the schema of a record says about reading it.

`SCHEMAS` is derived from `model.WIRE_SCHEMAS`, so the two codecs carry the same columns: strings, timestamps as
`timestamp-micros`, prices as `decimal` in `bytes` with the scale in the schema, columns that may be null as unions with
null first and null as default. `shape_of` reads any writer's schema into `Shape`s, which the readers and writers of
columns follow; a record is resolved by field names, as Avro's specification says.

Not its job: whether two schemas are compatible (`compatibility.py`), which id a schema has (`registry.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from k2ray.errors import UnreadableSchema
from k2ray.model import DECIMAL, REPEATED, STRING_MAP, TIMESTAMP, WIRE_SCHEMAS

NAMESPACE = "k2ray.market"
RECORD_NAMES = {"trades": "Trade", "quotes": "Quote"}

_TYPES: dict[pa.DataType, Any] = {
    pa.string(): "string",
    REPEATED: "string",
    pa.int64(): "long",
    TIMESTAMP: {"type": "long", "logicalType": "timestamp-micros"},
    DECIMAL: {
        "type": "bytes",
        "logicalType": "decimal",
        "precision": DECIMAL.precision,
        "scale": DECIMAL.scale,
    },
    pa.list_(pa.string()): {"type": "array", "items": "string"},
    STRING_MAP: {"type": "map", "values": "string"},
}

_PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")


def _field(column: pa.Field) -> dict[str, Any]:
    kind = _TYPES[column.type]
    if column.nullable:
        return {"name": column.name, "type": ["null", kind], "default": None}
    return {"name": column.name, "type": kind}


def _schema(table: str) -> str:
    record = {
        "type": "record",
        "name": RECORD_NAMES[table],
        "namespace": NAMESPACE,
        "fields": [_field(column) for column in WIRE_SCHEMAS[table]],
    }
    return json.dumps(record, separators=(",", ":"))


SCHEMAS = {table: _schema(table) for table in WIRE_SCHEMAS}
"""Table -> the Avro schema of its records, as JSON."""


@dataclass(frozen=True)
class Shape:
    """How a value lies in the bytes.

    Attributes:
        kind: A primitive's name, or enum, fixed, array, map.
        logical: Its logical type, if it has one that we know.
        scale: Of a decimal.
        size: Of a fixed, in bytes.
        symbols: Of an enum.
        inner: Of an array's items or a map's values.
        null_branch: Which branch of a union is null; None where there is no union with null.
        branches: Branches of the union around it; 0 where there is no union.
    """

    kind: str
    logical: str = ""
    scale: int = 0
    size: int = 0
    symbols: tuple[str, ...] = ()
    inner: Shape | None = None
    null_branch: int | None = None
    branches: int = 0


@dataclass(frozen=True)
class RecordShape:
    """A record's fields, in the order of their bytes."""

    name: str
    fields: tuple[tuple[str, Shape], ...] = field(default=())


def shape_of(schema: str) -> RecordShape:
    """Read a record's schema.

    Args:
        schema: Avro's JSON.

    Raises:
        UnreadableSchema: It is no Avro, or no flat record of values that a table could hold.
    """
    try:
        parsed = json.loads(schema)
        if not isinstance(parsed, dict) or parsed.get("type") != "record":
            raise UnreadableSchema("not the schema of a record")
        named: dict[str, Shape] = {}
        namespace = str(parsed.get("namespace", ""))
        fields = tuple((str(part["name"]), _shape(part["type"], named, namespace)) for part in parsed["fields"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableSchema(f"not an Avro schema: {type(error).__name__} {error}") from error
    return RecordShape(str(parsed.get("name", "")), fields)


def _shape(kind: Any, named: dict[str, Shape], namespace: str) -> Shape:
    if isinstance(kind, list):
        return _union(kind, named, namespace)
    if isinstance(kind, str):
        if kind in _PRIMITIVES:
            return Shape(kind)
        found = named.get(kind) or named.get(f"{namespace}.{kind}")
        if found is None:
            raise UnreadableSchema(f"type {kind!r} is not known")
        return found
    return _complex(kind, named, namespace)


def _complex(kind: Mapping[str, Any], named: dict[str, Shape], namespace: str) -> Shape:
    name = kind["type"]
    logical = str(kind.get("logicalType", ""))
    if not isinstance(name, str):
        return _shape(name, named, namespace)
    if name in ("array", "map"):
        return Shape(name, inner=_shape(kind["items" if name == "array" else "values"], named, namespace))
    scale = int(kind.get("scale", 0))
    if name in ("enum", "fixed"):
        size, symbols = int(kind.get("size", 0)), tuple(map(str, kind.get("symbols", ())))
        shape = Shape(name, logical, scale, size, symbols)
        inside = str(kind.get("namespace", namespace))
        full = str(kind["name"]) if "." in str(kind["name"]) else f"{inside}.{kind['name']}".lstrip(".")
        named[full] = shape
        return shape
    if name in _PRIMITIVES:
        return Shape(name, logical, scale)
    raise UnreadableSchema(f"a {name} inside of a record")


def _union(branches: list[Any], named: dict[str, Shape], namespace: str) -> Shape:
    shapes = [_shape(branch, named, namespace) for branch in branches]
    values = [shape for shape in shapes if shape.kind != "null"]
    nulls = [at for at, shape in enumerate(shapes) if shape.kind == "null"]
    if len(values) > 1 or len(nulls) > 1 or any(shape.branches for shape in shapes):
        raise UnreadableSchema("a union of more than null and one other type")
    value = values[0] if values else Shape("null")
    null = nulls[0] if nulls and values else None
    return Shape(
        value.kind, value.logical, value.scale, value.size, value.symbols, value.inner, null, branches=len(branches)
    )
