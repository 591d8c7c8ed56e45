"""Confluent's framing of Avro records, and the names of their subjects.

A value is a zero byte, the schema's id in 4 bytes (big-endian), then Avro's bytes. A topic's schemas are registered
under one subject, `<topic>-value` (TopicNameStrategy): what is looked up and what is registered is this one name.
"""

from __future__ import annotations

from k2ray.errors import BadRecord

MAGIC = 0
FRAMING_BYTES = 5
LARGEST_ID = 2**31 - 1


def prefix_of(schema_id: int) -> bytes:
    """Return the 5 bytes before a record of this schema."""
    return bytes([MAGIC]) + schema_id.to_bytes(4, "big")


def schema_id_of(value: bytes) -> int:
    """Return the id of the schema that a framed value was written with.

    Raises:
        BadRecord: The value is not framed.
    """
    if len(value) < FRAMING_BYTES:
        raise BadRecord(f"no Avro record: {len(value)} bytes, the framing alone has {FRAMING_BYTES}")
    if value[0] != MAGIC:
        raise BadRecord(f"no Avro record: its first byte is {value[0]}, not {MAGIC}")
    return int.from_bytes(value[1:FRAMING_BYTES], "big")


def subject_of(topic: str) -> str:
    """Return the subject of a topic's schemas."""
    return f"{topic}-value"
