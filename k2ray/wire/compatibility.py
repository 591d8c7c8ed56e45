"""Whether one Avro schema's records can be read with another: Apache Avro's own rules, and one more for decimals.

BACKWARD, as registries call it: a new schema reads what the subject's newest one wrote. Avro's resolution leaves
logical types alone, so a changed scale would silently multiply prices: that is refused here as well.

Not its job: where schemas are kept (`registry.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.errors import AvroException
from avro.schema import Schema, parse

from k2ray.errors import UnreadableSchema
from k2ray.wire.avro_schema import Shape, shape_of


def canonical(schema: str) -> str:
    """Return a schema's one text form, so that the same schema is the same text whoever wrote it.

    Raises:
        UnreadableSchema: It is no Avro schema.
    """
    _parsed(schema)
    return json.dumps(json.loads(schema), separators=(",", ":"), sort_keys=True)


def problems(reader: str, writer: str) -> list[str]:
    """Return why records of `writer` cannot be read with `reader`; empty if they can.

    Args:
        reader: The newer schema.
        writer: The older one.

    Raises:
        UnreadableSchema: One of them is no Avro schema.
    """
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]
    result = checker.get_compatibility(reader=_parsed(reader), writer=_parsed(writer))
    found: list[str] = []
    if result.compatibility is not SchemaCompatibilityType.compatible:
        kinds = ", ".join(sorted(kind.value for kind in result.incompatibilities))
        places = ", ".join(sorted(result.locations))
        found.append(f"{kinds} at {places}: {'; '.join(sorted(result.messages))}")
    return found + _changed_meanings(reader, writer)


def refusals(new: str, old: Sequence[str], compatibility: str) -> list[str]:
    """Return why a subject may not get a new schema.

    Args:
        new: The schema.
        old: The subject's schemas, oldest first.
        compatibility: BACKWARD or BACKWARD_TRANSITIVE.
    """
    against = old[-1:] if compatibility == "BACKWARD" else old
    return [problem for schema in against for problem in problems(new, schema)]


def _changed_meanings(reader: str, writer: str) -> list[str]:
    try:
        new, old = dict(shape_of(reader).fields), dict(shape_of(writer).fields)
    except UnreadableSchema:
        return []  # not a flat record: none of ours, and Avro's own rules have judged it
    return [
        f"field {name} is {_meaning(new[name])}, and was {_meaning(old[name])}"
        for name in new
        if name in old and _meaning(new[name]) != _meaning(old[name])
    ]


def _meaning(shape: Shape) -> str:
    if shape.logical == "decimal":
        return f"a decimal of scale {shape.scale}"
    return shape.logical or "a plain value"


def _parsed(schema: str) -> Schema:
    try:
        return parse(schema)
    except (AvroException, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnreadableSchema(f"not an Avro schema: {error}") from error
