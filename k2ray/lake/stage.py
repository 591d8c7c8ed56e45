"""10. Rows -> sorted Parquet files that no snapshot names yet: one file a day and exchange, durable when staged.

Rows are sorted by symbol and timestamp, and row groups are small enough that their statistics prune by symbol.
Repeated strings stay dictionaries all the way, so a sort compares ranks, not strings. A file's name holds topic id,
partition and offset range of a partition that its batch moves: once the committed offset has passed that start, the
batch can never pass the fence again, and upkeep may remove a file that no snapshot names.

Next in the flow: `commit.py`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import (
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
    schema_to_pyarrow,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.typedef import Record

from k2ray.lake.commit import Faults, no_faults
from k2ray.lake.durable import AWAY, remove_quietly, unavailable
from k2ray.model import table_schema

ROWS_PER_GROUP = 16_384
"""A question about one symbol decodes whole row groups, so small ones save it work (bars of a day took half the CPU at
8,192 that they took at 65,536). Staging costs the same down to this size, and a third more at 8,192."""

DAY_US = 86_400_000_000

# Ids and times step by little in a sorted file; prices and repeated strings are better off as dictionaries.
_STEPPING = ("source_sequence", "timestamp", "ingestion_timestamp")
_NAMES = ("trade_id", "quote_id")


@dataclass(frozen=True)
class Origin:
    """Where a staged file's batch comes from: one partition that it moves, and how far."""

    topic_id: str
    partition: int
    start: int
    end: int

    def file_name(self) -> str:
        """Return a new name for a file of this batch."""
        topic_id = quote(self.topic_id, safe="").replace(".", "%2E")
        return f"k2ray.{topic_id}.{self.partition}.{self.start}.{self.end}.{uuid.uuid4().hex}.parquet"

    @staticmethod
    def of(file_name: str) -> Origin | None:
        """Read a name that `file_name` made; None for any other."""
        parts = file_name.rsplit("/", 1)[-1].split(".")
        if len(parts) != 7 or parts[0] != "k2ray" or not all(part.isdigit() for part in parts[2:5]):
            return None
        return Origin(unquote(parts[1]), int(parts[2]), int(parts[3]), int(parts[4]))


def stage(table: Table, table_name: str, rows: pa.Table, origin: Origin, faults: Faults = no_faults) -> list[DataFile]:
    """Write rows as files that a commit can name.

    Args:
        table: Whose schema, properties and folder the files follow.
        table_name: Which model the rows have.
        rows: Columns of the model's rows, in any order of rows; others (`sequence_from`) are left out of the files.
        origin: For the files' names.
        faults: Called at `mid_parquet`, with a file half written.

    Raises:
        CatalogUnavailable: The storage does not answer or is full. What was written is left to upkeep.
    """
    columns = file_columns(table.schema(), table_name)
    files = []
    try:
        for day, exchange, part in _partitions(sort_rows(rows)):
            location = file_location(table, day, exchange, origin.file_name())
            groups = (part.slice(start, ROWS_PER_GROUP) for start in range(0, part.num_rows, ROWS_PER_GROUP))
            files.append(write_file(table, columns, groups, location, Record(day, exchange), faults))
    except AWAY as error:
        raise unavailable(f"{table_name}: cannot stage", error) from error
    return files


def file_location(table: Table, day: int, exchange: str, name: str) -> str:
    """Return where a file of a partition lies."""
    folder = f"timestamp_day={_day_name(day)}/exchange={quote(exchange, safe='')}"
    return f"{table.location().rstrip('/')}/data/{folder}/{name}"


def file_columns(schema: Schema, table_name: str) -> dict[str, pa.Field]:
    """Return the model's column -> field in the file, by the table's present names and ids, less dropped columns."""
    stored = schema_to_pyarrow(schema, include_field_ids=True)
    present = {field.field_id: field.name for field in schema.fields}
    return {
        name: stored.field(present[field_id])
        for field_id, name in enumerate(table_schema(table_name).names, start=1)
        if field_id in present
    }


def sort_rows(rows: pa.Table) -> pa.Table:
    """Return the rows by symbol and timestamp, contiguous; rows with equal keys keep their order.

    Arrow cannot sort by a dictionary column: the symbols' ranks are sorted instead, by radix, and the times only where
    an instrument's rows did not come in order.
    """
    single = rows.combine_chunks()
    symbols, times = _chunk(single, "symbol"), _micros(single)
    names = symbols.dictionary.to_pylist()
    rank = np.empty(len(names), dtype=np.uint16 if len(names) < 65_536 else np.int64)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    keys = rank[symbols.indices.to_numpy()]
    order = np.argsort(keys, kind="stable")
    sorted_keys, sorted_times = keys[order], times[order]
    if np.any((sorted_keys[1:] == sorted_keys[:-1]) & (sorted_times[1:] < sorted_times[:-1])):
        order = np.lexsort((times, keys))
    indices = pa.array(order)
    # Column by column: Table.take hands each column to a pool, which costs more than the work.
    return pa.Table.from_arrays([column.chunk(0).take(indices) for column in single.columns], schema=single.schema)


def _partitions(rows: pa.Table) -> Iterator[tuple[int, str, pa.Table]]:
    """Split sorted rows by day and exchange."""
    days = _micros(rows) // DAY_US
    exchanges = _chunk(rows, "exchange")
    names = exchanges.dictionary.to_pylist()
    codes = exchanges.indices.to_numpy()
    one_day = days.min() == days.max()
    used = np.unique(codes)
    if one_day and len(used) == 1:
        yield int(days[0]), names[int(used[0])], rows
        return
    for code in used:
        of_exchange = codes == code
        for day in np.unique(days[of_exchange]):
            yield int(day), names[int(code)], rows.filter(pa.array(of_exchange & (days == day)))


def write_file(
    table: Table,
    columns: Mapping[str, pa.Field],
    groups: Iterable[pa.Table],
    location: str,
    partition: Record,
    faults: Faults,
) -> DataFile:
    """Write one file of sorted rows; after an error nothing is left of it, so that retries do not fill a full disk.

    Args:
        table: Whose schema and properties it follows.
        columns: The model's column -> field in the file.
        groups: At least one table with those columns; each becomes a row group.
        location: Its name.
        partition: Day and exchange of all rows.
        faults: Called at `mid_parquet` after each row group.
    """
    plain = {*_STEPPING, *_NAMES} & set(columns)
    encodings = {name: "DELTA_BYTE_ARRAY" if name in _NAMES else "DELTA_BINARY_PACKED" for name in plain}
    names = {name: field.name for name, field in columns.items()}
    pieces = iter(groups)
    first = _as_stored(next(pieces), columns)
    try:
        with table.io.new_output(location).create() as stream:
            with pq.ParquetWriter(
                stream,
                first.schema,
                compression="zstd",
                compression_level=3,
                use_dictionary=[names[name] for name in names if name not in plain],
                column_encoding={names[name]: encoding for name, encoding in encodings.items()},
                store_schema=False,
            ) as writer:
                for group in chain([first], (_as_stored(piece, columns) for piece in pieces)):
                    writer.write_table(group, row_group_size=ROWS_PER_GROUP)
                    faults("mid_parquet")
            size = stream.tell()
    except OSError:
        remove_quietly(table.io, location)
        raise
    return _data_file(table, writer.writer.metadata, location, size, partition)


def _data_file(table: Table, metadata: pq.FileMetaData, location: str, size: int, partition: Record) -> DataFile:
    schema = table.schema()
    statistics = data_file_statistics_from_parquet_metadata(
        parquet_metadata=metadata,
        stats_columns=compute_statistics_plan(schema, table.metadata.properties),
        parquet_column_mapping=parquet_path_to_id_mapping(schema),
    )
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=location,
        file_format=FileFormat.PARQUET,
        partition=partition,
        file_size_in_bytes=size,
        sort_order_id=table.metadata.default_sort_order_id,
        spec_id=table.metadata.default_spec_id,
        equality_ids=None,
        key_metadata=None,
        **statistics.to_serialized_dict(),
    )


def _as_stored(rows: pa.Table, columns: Mapping[str, pa.Field]) -> pa.Table:
    """Name the columns as the file does; dictionaries stay: Parquet stores strings either way, ids are metadata."""
    arrays = [rows.column(name) for name in columns]
    fields = [
        field.with_type(array.type) if pa.types.is_dictionary(array.type) else field
        for field, array in zip(columns.values(), arrays, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _chunk(rows: pa.Table, name: str) -> pa.DictionaryArray:
    return rows.column(name).chunk(0)


def _micros(rows: pa.Table) -> np.ndarray:
    found: np.ndarray = rows.column("timestamp").chunk(0).view(pa.int64()).to_numpy()
    return found


def _day_name(day: int) -> str:
    return str(np.datetime64(day, "D"))


def concat_rows(pieces: Sequence[pa.RecordBatch]) -> pa.Table:
    """Return one table of many batches, each with dictionaries of its own."""
    return pa.Table.from_batches([pa.concat_batches(pieces)])


def ledger_location(table: Table) -> str:
    """Return a new location for a ledger file, beside the table's metadata."""
    return table.location_provider().new_metadata_location(f"k2ray-ledger-{uuid.uuid4()}.arrow")
