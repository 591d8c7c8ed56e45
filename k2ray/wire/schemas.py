"""What every process knows of schemas: ids to readers, subjects to ids, kept in bounded caches over a source.

The source is the serializer actor (`actors/schemas.py`), or a registry itself where there are no actors. While it is
away, what is in the caches goes on working; what is not raises `RegistryUnavailable`, and the caller waits: a writer
keeps the records that it read, a feed sends Arrow (`encoder.py`).

Next in the flow: `registry.py`.
"""

from __future__ import annotations

from typing import Protocol

from k2ray.errors import BadRecord, UnreadableSchema
from k2ray.wire.avro_decode import RecordReader
from k2ray.wire.avro_schema import shape_of
from k2ray.wire.cache import SchemaCache


class UnknownSchema(BadRecord):
    """The registry answered that it has no schema of this id: a record that names it can never be read."""


class SchemaSource(Protocol):
    """Who knows schemas."""

    def by_id(self, schema_id: int) -> str:
        """Return the schema of an id, as JSON.

        Raises:
            UnknownSchema: There is none, says the registry.
            RegistryUnavailable: Nobody answers; ask again.
        """

    def id_for(self, subject: str, schema: str) -> int:
        """Return the schema's id under its subject, registering it if it is new there and compatible.

        Raises:
            IncompatibleSchema: It cannot read what the subject's newest schema wrote.
            RegistryUnavailable: Nobody answers; ask again.
        """


_Compiled = RecordReader | UnreadableSchema


class Schemas:
    """A process's view of the schemas, for one table's reader or one feed's writer.

    Args:
        source: Asked for what is not in the caches.
        cache_size: `wire.cache_size`.
    """

    def __init__(self, source: SchemaSource, cache_size: int) -> None:
        self._source = source
        self._readers: SchemaCache[tuple[int, str], RecordReader | UnreadableSchema] = SchemaCache(
            "readers", cache_size
        )
        self._ids: SchemaCache[tuple[str, str], int] = SchemaCache("ids", cache_size)

    def reader(self, schema_id: int, table: str) -> RecordReader:
        """Return what reads records of this schema into rows of a table.

        Raises:
            UnknownSchema: There is no such schema.
            UnreadableSchema: It is no schema of this table's rows.
            RegistryUnavailable: Nobody answers; ask again.
        """
        found = self._readers.get((schema_id, table), self._compile)
        if isinstance(found, UnreadableSchema):
            raise found
        return found

    def id_for(self, subject: str, schema: str) -> int:
        """Return the schema's id under its subject; raises what `SchemaSource.id_for` raises."""
        return self._ids.get((subject, schema), lambda key: self._source.id_for(*key))

    def _compile(self, key: tuple[int, str]) -> _Compiled:
        schema_id, table = key
        try:
            return RecordReader(shape_of(self._source.by_id(schema_id)), table)
        except UnreadableSchema as error:
            # As immutable as the schema, so it is kept as well.
            return UnreadableSchema(f"schema {schema_id}: {error}")
