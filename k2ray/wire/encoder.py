"""6b. Rows -> what is published: one Arrow record a batch, or one Avro record a trade (`wire.codec`).

Whoever produces rows (feeds, backfill, files) calls `publish_rows`. An Avro encoder needs its topics' schema ids first
(`learn`); where it does not have them, since nobody answered yet or the registry refuses our schema, it sends Arrow:
readers of ours take both, record by record, so nothing is lost or delayed. Those rows are counted.

Next in the flow: `log/producer.py`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import pyarrow as pa

from k2ray import metrics
from k2ray.model import WIRE_SCHEMAS
from k2ray.settings import Wire
from k2ray.wire.avro_encode import encode_records
from k2ray.wire.avro_schema import SCHEMAS
from k2ray.wire.codec import Headers, encode_rows
from k2ray.wire.framing import prefix_of, subject_of
from k2ray.wire.schemas import Schemas, SchemaSource


class Encoded(NamedTuple):
    """Kafka values of some rows, and the headers of each: one value of all rows, or one of each row without headers."""

    values: list[bytes]
    headers: Headers


class RowEncoder(Protocol):
    """Makes Kafka values of rows."""

    def encode(self, topic: str, table: str, rows: pa.RecordBatch) -> Encoded:
        """Return the values of some rows of one partition.

        Args:
            topic: Where they go.
            table: `trades` or `quotes`.
            rows: In the table's wire schema.
        """


class RowProducer(Protocol):
    """What publishing needs of `log.producer.LogProducer`."""

    def publish(self, topic: str, partition: int, value: bytes, headers: Headers, rows: int) -> None:
        """Take one record of many rows."""

    def publish_each(self, topic: str, partition: int, values: list[bytes]) -> None:
        """Take many records of one row each."""


class ArrowEncoder:
    """One record a batch."""

    def encode(self, topic: str, table: str, rows: pa.RecordBatch) -> Encoded:
        """Return one value."""
        value, headers = encode_rows(table, rows)
        return Encoded([value], headers)


ARROW = ArrowEncoder()


class AvroEncoder:
    """One record a row, as soon as the topic's schema id is known; Arrow until then.

    Args:
        schemas: Knows ids.
    """

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._prefixes: dict[str, bytes] = {}

    def learn(self, topic: str, table: str) -> None:
        """Get the id of our schema under the topic's subject; call it from a thread that may wait.

        Raises:
            IncompatibleSchema: The registry refuses our schema; a person must decide.
            RegistryUnavailable: Nobody answers; repeat.
        """
        if topic not in self._prefixes:
            self._prefixes[topic] = prefix_of(self._schemas.id_for(subject_of(topic), SCHEMAS[table]))

    def knows(self, topic: str) -> bool:
        """Whether rows of this topic go out as Avro."""
        return topic in self._prefixes

    def encode(self, topic: str, table: str, rows: pa.RecordBatch) -> Encoded:
        """Return a value a row."""
        prefix = self._prefixes.get(topic)
        if prefix is None:
            metrics.WIRE_FALLBACK_ROWS.labels(topic).inc(rows.num_rows)
            return ARROW.encode(topic, table, rows)
        if not rows.schema.equals(WIRE_SCHEMAS[table]):
            raise ValueError(f"not the wire schema of {table}")
        return Encoded(encode_records(rows, prefix), [])


def encoder_for(wire: Wire, source: SchemaSource) -> RowEncoder:
    """Return the encoder that the settings ask for.

    Args:
        wire: The settings.
        source: Asked for schema ids with codec avro.
    """
    return ARROW if wire.codec == "arrow" else AvroEncoder(Schemas(source, wire.cache_size))


def publish_rows(
    producer: RowProducer, encoder: RowEncoder, topic: str, partition: int, table: str, rows: pa.RecordBatch
) -> None:
    """Encode rows of one partition and hand them to the producer; nothing else decides how rows look in Kafka."""
    values, headers = encoder.encode(topic, table, rows)
    if headers:
        producer.publish(topic, partition, values[0], headers, rows.num_rows)
    else:
        producer.publish_each(topic, partition, values)
