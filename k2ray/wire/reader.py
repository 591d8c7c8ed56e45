"""8b. Kafka values -> rows: whatever a record says that it is, Arrow or Avro, told record by record.

A record with a `k2ray-kind` header is ours in Arrow (`codec.py`): rows or a seal. One without headers is Avro in
Confluent's framing, also somebody else's; runs of them are read together, and one that cannot be read is refused alone.
So a topic may hold both, as it does after `wire.codec` was changed.

Next in the flow: `lake/intake.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2ray.errors import BadInput, BadRecord
from k2ray.log.records import LogRecord, RecordRun
from k2ray.model import WIRE_SCHEMAS
from k2ray.wire.codec import Seal, decode
from k2ray.wire.framing import FRAMING_BYTES, schema_id_of
from k2ray.wire.schemas import Schemas


class Rows(NamedTuple):
    """Rows in a table's wire schema, and which record of the run each one came from."""

    batch: pa.RecordBatch
    places: npt.NDArray[np.int64]


class Refused(NamedTuple):
    """A record that cannot be read: its place in the run, and why."""

    place: int
    reason: str


class RowReader:
    """Reads the records of one table's topics.

    Args:
        table: Whose rows they carry; any other's are refused.
        schemas: Knows what Avro's schema ids stand for.
    """

    def __init__(self, table: str, schemas: Schemas) -> None:
        self._table = table
        self._schema = WIRE_SCHEMAS[table]
        self._schemas = schemas

    def one(self, record: LogRecord) -> pa.RecordBatch | Seal:
        """Read a record with headers.

        Raises:
            BadRecord: It cannot be read.
        """
        found = decode(record.value, record.headers)
        if not isinstance(found, Seal) and not found.schema.equals(self._schema):
            raise BadRecord(f"rows of another table than {self._table}")
        return found

    def run(self, run: RecordRun) -> tuple[list[Rows], list[Refused]]:
        """Read records without headers; rows come in their records' order, refused ones are left out.

        Raises:
            RegistryUnavailable: Nobody tells what a schema id stands for; call again with the same run.
        """
        pieces: list[Rows] = []
        refused: list[Refused] = []
        for prefix, first, values in _by_prefix(run.values):
            try:
                reader = self._schemas.reader(schema_id_of(prefix), self._table)
            except BadInput as error:
                # A schema that is not known, or not this table's: so are all the records that it wrote.
                refused += [Refused(first + at, str(error)) for at in range(len(values))]
                continue
            batch, bad = reader.read(values, FRAMING_BYTES)
            places = np.arange(first, first + len(values))
            if bad:
                places = np.delete(places, [at for at, _ in bad])
                refused += [Refused(first + at, reason) for at, reason in bad]
            pieces.append(Rows(batch, places))
        return pieces, refused


def _by_prefix(values: Sequence[bytes]) -> list[tuple[bytes, int, list[bytes]]]:
    """Cut a run where the schema changes: (prefix, index of the first, values)."""
    whole = list(values)
    if len({value[:FRAMING_BYTES] for value in whole}) == 1:
        return [(whole[0], 0, whole)]
    found, at = [], 0
    for prefix, group in groupby(whole, key=lambda value: value[:FRAMING_BYTES]):
        some = list(group)
        found.append((prefix, at, some))
        at += len(some)
    return found
