"""6. Record batch <-> bytes: one Kafka value is one Arrow IPC stream with one batch of one partition.

The default codec, and the form of seals with either codec; `encoder.py` chooses.

A record's headers say what its value is: `k2ray-schema` (`trades/1`: table and version), `k2ray-kind` (`rows`, `seal`).
The value is not compressed by default: Kafka compresses whole record batches, cheaper in CPU (benchmarks/codec.py) and
denser than each Arrow buffer by itself. Reading is strict: what this module does not know exactly is a `BadRecord`.

Not its job: Kafka itself. Next in the flow: `log/producer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pyarrow as pa

from k2ray.errors import BadRecord
from k2ray.model import SEAL_WIRE, WIRE_SCHEMAS

Headers = list[tuple[str, bytes]]
Compression = Literal["lz4", "zstd"]

SCHEMA_HEADER = "k2ray-schema"
KIND_HEADER = "k2ray-kind"
ROWS = b"rows"
SEAL = b"seal"
VERSION = 1

# One thread: Arrow's pool takes eight times the CPU for a batch's small buffers (686 against 83 us for 500 rows).
_WRITE = {name: pa.ipc.IpcWriteOptions(compression=name, use_threads=False) for name in (None, "lz4", "zstd")}
_READ = pa.ipc.IpcReadOptions(use_threads=False)

_ROW_HEADERS = {table: [(SCHEMA_HEADER, f"{table}/{VERSION}".encode()), (KIND_HEADER, ROWS)] for table in WIRE_SCHEMAS}
_SEAL_HEADERS: Headers = [(SCHEMA_HEADER, f"seal/{VERSION}".encode()), (KIND_HEADER, SEAL)]


class _Form(NamedTuple):
    """A schema: its columns, the first bytes of a value from our own writer, and the columns that have no nulls."""

    schema: pa.Schema
    prefix: bytes
    required: list[int]


def _form(schema: pa.Schema) -> _Form:
    required = [index for index, field in enumerate(schema) if not field.nullable]
    return _Form(schema, schema.serialize().to_pybytes(), required)


_FORMS = {f"{table}/{VERSION}".encode(): _form(schema) for table, schema in WIRE_SCHEMAS.items()}
_SEAL_FORM = _form(SEAL_WIRE)


@dataclass(frozen=True)
class Seal:
    """Ids (sequence_from, sequence_to] of an instrument's space that are lost for good, so nobody waits for them.

    Attributes:
        exchange: The instrument's exchange.
        symbol: The instrument's symbol.
        sequence_space: Which numbering the ids belong to.
        sequence_from: Start of the ids, exclusive.
        sequence_to: End of the ids, inclusive.
        reason: Why they are given up, for people.
    """

    exchange: str
    symbol: str
    sequence_space: str
    sequence_from: int
    sequence_to: int
    reason: str


def encode_rows(table: str, batch: pa.RecordBatch, compression: Compression | None = None) -> tuple[bytes, Headers]:
    """Return a Kafka value and its headers for a batch of one partition.

    Args:
        table: `trades` or `quotes`.
        batch: Rows in the table's wire schema (`model.WIRE_SCHEMAS`), columns in that order.
        compression: Of the Arrow buffers; None leaves it to Kafka.

    Raises:
        ValueError: The batch has another schema: a programming error of the caller.
    """
    if not batch.schema.equals(WIRE_SCHEMAS[table]):
        raise ValueError(f"not the wire schema of {table}: {_difference(batch.schema, WIRE_SCHEMAS[table])}")
    return _to_bytes(batch, compression), list(_ROW_HEADERS[table])


def encode_seal(seal: Seal) -> tuple[bytes, Headers]:
    """Return a Kafka value and its headers for a control record that closes a gap for good."""
    row = {field.name: [getattr(seal, field.name)] for field in SEAL_WIRE}
    return _to_bytes(pa.RecordBatch.from_pydict(row, schema=SEAL_WIRE), None), list(_SEAL_HEADERS)


def is_ours(headers: Sequence[tuple[str, bytes | None]] | None) -> bool:
    """Whether a record says that it is in one of this module's forms; others are read as Avro (`reader.py`)."""
    return any(name == KIND_HEADER for name, _ in headers or ())


def decode(value: bytes | None, headers: Sequence[tuple[str, bytes | None]] | None) -> pa.RecordBatch | Seal:
    """Read what `encode_rows` or `encode_seal` wrote.

    Args:
        value: A Kafka record's value.
        headers: Its headers.

    Returns:
        The rows, in their table's wire schema, fully validated; or the seal.

    Raises:
        BadRecord: Unknown schema or kind, other columns, nulls where none may be, corrupt or surplus bytes. Keep the
            raw bytes as a dead letter and go on with the next record.
    """
    named = dict(headers or ())
    schema_id, kind = named.get(SCHEMA_HEADER), named.get(KIND_HEADER)
    if kind == SEAL:
        if schema_id != _SEAL_HEADERS[0][1]:
            raise BadRecord(f"unknown schema of a seal: {schema_id!r}")
        return _read_seal(value)
    if kind != ROWS:
        raise BadRecord(f"unknown kind of record: {kind!r}")
    form = _FORMS.get(schema_id or b"")
    if form is None:
        raise BadRecord(f"unknown schema: {schema_id!r}")
    return _from_bytes(value, form)


def _to_bytes(batch: pa.RecordBatch, compression: Compression | None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_WRITE[compression]) as writer:
        writer.write_batch(batch)
    value: bytes = sink.getvalue().to_pybytes()
    return value


def _from_bytes(value: bytes | None, form: _Form) -> pa.RecordBatch:
    """Return the stream's only batch after a full check: a corrupt offset or index must not reach native code."""
    if not value:
        raise BadRecord("empty value")
    source = pa.BufferReader(value)
    try:
        reader = pa.ipc.open_stream(source, options=_READ)
        # Our own writer's first bytes are always the same; other writers' may say the same schema in other bytes.
        if not value.startswith(form.prefix) and not reader.schema.equals(form.schema):
            raise BadRecord(f"other columns than its schema's: {_difference(reader.schema, form.schema)}")
        batch = reader.read_next_batch()
        batch.validate(full=True)
        _expect_end(reader, source, len(value))
    except StopIteration:
        raise BadRecord("no batch in the value") from None
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise BadRecord(f"corrupt Arrow stream: {error}") from error
    # One call into Arrow, which returns at once where there are no nulls; asking each column from here takes 30 us.
    if batch.select(form.required).drop_null().num_rows != batch.num_rows:
        names = [form.schema.field(index).name for index in form.required if batch.column(index).null_count]
        raise BadRecord(f"nulls in {', '.join(names)}, which may have none")
    return batch


def _expect_end(reader: pa.ipc.RecordBatchStreamReader, source: pa.BufferReader, size: int) -> None:
    try:
        reader.read_next_batch()
    except StopIteration:
        if source.tell() != size:
            raise BadRecord(f"{size - source.tell()} bytes after the end of the stream") from None
        return
    raise BadRecord("more than one batch in the value")


def _read_seal(value: bytes | None) -> Seal:
    batch = _from_bytes(value, _SEAL_FORM)
    if batch.num_rows != 1:
        raise BadRecord(f"a seal of {batch.num_rows} rows")
    row = batch.to_pylist()[0]
    if row["sequence_from"] >= row["sequence_to"]:
        raise BadRecord(f"a seal of no ids: ({row['sequence_from']}, {row['sequence_to']}]")
    return Seal(**row)


def _difference(found: pa.Schema, wanted: pa.Schema) -> str:
    if found.names != wanted.names:
        odd = sorted(set(found.names) ^ set(wanted.names))
        return f"columns {', '.join(odd)}" if odd else "order of columns"
    return "; ".join(
        f"{here.name} is {here.type}, not {there.type}"
        for here, there in zip(found, wanted, strict=True)
        if not here.equals(there)
    )
