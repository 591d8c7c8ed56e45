"""Avro schemas that differ from ours, and sources of schemas in memory."""

from __future__ import annotations

import json
from typing import Any

from k2ray.errors import RegistryUnavailable
from k2ray.wire.avro_schema import SCHEMAS
from k2ray.wire.schemas import UnknownSchema


def changed(
    table: str,
    *,
    add: str = "",
    default: bool = True,
    drop: str = "",
    scale: int | None = None,
    kind: Any = "string",
    replace: dict[str, Any] | None = None,
) -> str:
    """Return a table's schema with a difference.

    Args:
        table: `trades` or `quotes`.
        add: A field more.
        default: Whether it has a default, so that old records can be read.
        drop: A field less.
        scale: Of all decimals.
        kind: Type of the field that is added.
        replace: Name -> another type.
    """
    schema = json.loads(SCHEMAS[table])
    schema["fields"] = [field for field in schema["fields"] if field["name"] != drop]
    for field in schema["fields"]:
        if replace and field["name"] in replace:
            field["type"] = replace[field["name"]]
            field.pop("default", None)
        if scale is not None and isinstance(field["type"], dict) and field["type"].get("logicalType") == "decimal":
            field["type"]["scale"] = scale
    if add:
        more: dict[str, Any] = {"name": add, "type": kind}
        if default:
            more["default"] = {"string": "", "long": 0}.get(kind) if isinstance(kind, str) else None
        schema["fields"].append(more)
    return json.dumps(schema)


class MemorySchemas:
    """A registry in memory; with `away` nobody answers.

    Attributes:
        asked: How many questions came.
    """

    def __init__(self) -> None:
        self.kept: dict[int, str] = {}
        self.away = False
        self.asked = 0

    def by_id(self, schema_id: int) -> str:
        self._answer()
        if schema_id not in self.kept:
            raise UnknownSchema(f"unknown schema: {schema_id} is not in memory")
        return self.kept[schema_id]

    def id_for(self, subject: str, schema: str) -> int:
        self._answer()
        for number, text in self.kept.items():
            if text == schema:
                return number
        number = max(self.kept, default=0) + 1
        self.kept[number] = schema
        return number

    def _answer(self) -> None:
        self.asked += 1
        if self.away:
            raise RegistryUnavailable("the registry is away")
