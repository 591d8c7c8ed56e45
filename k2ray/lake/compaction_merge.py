"""Many sorted files -> one sorted stream of rows, in bounded memory: an external merge.

1. Small files are read together, up to `CHUNK_ROWS` rows, sorted, and put into a scratch file; if that is all there is,
   no scratch is needed. Larger files are streams by themselves.
2. All streams are merged: each holds one row group. What is not above the lowest last row of all that is held is
   complete, and goes on, sorted.

So memory is one chunk, and after it one row group a stream, whatever the hour's size. Scratch files have no name: a
killed process leaves none behind.

Next in the flow: `compaction.py` writes the rows and compares fingerprints.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io import FileIO
from pyiceberg.schema import Schema

from k2ray.errors import K2rayError
from k2ray.lake.fingerprint import Fingerprint, fingerprint
from k2ray.lake.stage import ROWS_PER_GROUP, file_columns, sort_rows
from k2ray.model import row_schema

CHUNK_ROWS = 400_000
"""Rows that are sorted at once: about 45 MB of trades, twice while they are sorted."""

_FIELD_ID = b"PARQUET:field_id"


class CannotCompact(K2rayError):
    """Files cannot be rewritten as they are: leave them and say so."""


@dataclass(frozen=True)
class Columns:
    """The table's present columns, as rows are merged and as files name them.

    Attributes:
        merged: The model's names and types, with field ids in their metadata: repeated strings stay dictionaries.
        foreign: Field ids of columns that somebody else added to the table.
    """

    merged: pa.Schema
    foreign: frozenset[bytes]

    @staticmethod
    def of(schema: Schema, table_name: str) -> Columns:
        """Return the columns of a table."""
        rows = row_schema(table_name)
        stored = file_columns(schema, table_name)
        ids = {(field.metadata or {}).get(_FIELD_ID) for field in stored.values()}
        merged = [field.with_name(name).with_type(rows.field(name).type) for name, field in stored.items()]
        return Columns(pa.schema(merged), frozenset(str(field.field_id).encode() for field in schema.fields) - ids)


class Source:
    """One file of a table, read by row groups with the table's present columns.

    Args:
        io: Where it is.
        location: Its name.
        columns: What its rows are read as.

    Raises:
        CannotCompact: Not a Parquet file, or its columns are not ours.
    """

    def __init__(self, io: FileIO, location: str, columns: Columns) -> None:
        self.location = location
        self._columns = columns
        self._stream = io.new_input(location).open()
        try:
            stored = {(field.metadata or {}).get(_FIELD_ID): field.name for field in pq.read_schema(self._stream)}
            found = {field.name: stored.get((field.metadata or {}).get(_FIELD_ID)) for field in columns.merged}
            self._names = {name: there for name, there in found.items() if there is not None}
            repeated = [
                self._names[field.name]
                for field in columns.merged
                if pa.types.is_dictionary(field.type) and field.name in self._names
            ]
            self._file = pq.ParquetFile(self._stream, read_dictionary=repeated)
        except pa.ArrowInvalid as error:
            self.close()
            raise CannotCompact(f"{location} cannot be read: {error}") from error
        missing = [field.name for field in columns.merged if field.name not in self._names and not field.nullable]
        if missing or columns.foreign & set(stored):
            self.close()
            raise CannotCompact(f"{location} lacks {missing or 'nothing'}, or has a column that somebody else added")
        self.rows: int = self._file.metadata.num_rows

    def groups(self) -> Iterator[pa.Table]:
        """Yield its rows, a row group at a time.

        Raises:
            CannotCompact: It is damaged.
        """
        for number in range(self._file.metadata.num_row_groups):
            try:
                group = self._file.read_row_group(number, columns=list(self._names.values()), use_threads=False)
            except (pa.ArrowInvalid, OSError) as error:
                raise CannotCompact(f"{self.location}, row group {number}, cannot be read: {error}") from error
            yield self._shaped(group)

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()

    def _shaped(self, group: pa.Table) -> pa.Table:
        arrays = []
        for field in self._columns.merged:
            stored = self._names.get(field.name)
            if stored is None:
                arrays.append(pa.chunked_array([pa.nulls(group.num_rows, field.type)]))
            else:
                column = group.column(stored)
                arrays.append(column if column.type == field.type else column.cast(field.type))
        return _one_chunk(pa.Table.from_arrays(arrays, schema=self._columns.merged))


class Merge:
    """The rows of many files in the table's order; `seen` is their fingerprint once all were read.

    Args:
        sources: Opens the files, one call a file, in the order of time.
        names: Columns that the fingerprint covers.
        scratch: Folder for files without a name.
        alive: Called often; raises to stop.
    """

    def __init__(
        self, sources: Iterable[Callable[[], Source]], names: Sequence[str], scratch: Path, alive: Callable[[], None]
    ) -> None:
        self.seen = Fingerprint()
        self._sources = sources
        self._names = names
        self._scratch = scratch
        self._alive = alive

    def rows(self) -> Iterator[pa.Table]:
        """Yield sorted tables of `ROWS_PER_GROUP` rows, the last one of what is left.

        Raises:
            CannotCompact: A file cannot be read, or is large and not sorted.
        """
        with contextlib.ExitStack() as stack:
            streams, chunk = self._streams(stack)
            if not streams:
                yield from _even([] if chunk is None else _slices(chunk))
                return
            if chunk is not None:
                streams.append(self._spilled(stack, chunk))
            del chunk
            yield from _even(_merged([_Stream(stream) for stream in streams], self._alive))

    def _streams(self, stack: contextlib.ExitStack) -> tuple[list[Iterator[pa.Table]], pa.Table | None]:
        """Read what is small; return streams of what is not, and the last chunk."""
        streams: list[Iterator[pa.Table]] = []
        gathered: list[pa.Table] = []
        rows = 0
        for opened in self._sources:
            self._alive()
            source = opened()
            if source.rows > CHUNK_ROWS // 4:
                stack.callback(source.close)
                streams.append(self._noted(source.groups()))
                continue
            if gathered and rows + source.rows > CHUNK_ROWS:
                streams.append(self._spilled(stack, _sorted(gathered)))
                gathered, rows = [], 0
            with contextlib.closing(source):
                gathered += self._noted(source.groups())
            rows += source.rows
        return streams, _sorted(gathered) if gathered else None

    def _noted(self, groups: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for group in groups:
            self.seen += fingerprint(group, self._names)
            yield group

    def _spilled(self, stack: contextlib.ExitStack, chunk: pa.Table) -> Iterator[pa.Table]:
        """Put a sorted chunk aside, and return a stream of it."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(tempfile.TemporaryFile(dir=self._scratch))
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        with pa.ipc.new_file(pa.PythonFile(file, mode="w"), chunk.schema, options=options) as writer:
            for batch in chunk.to_batches(ROWS_PER_GROUP):
                writer.write_batch(batch)
        file.seek(0)
        reader = pa.ipc.open_file(pa.PythonFile(file, mode="r"))
        return (pa.Table.from_batches([reader.get_batch(number)]) for number in range(reader.num_record_batches))


class _Stream:
    """Sorted rows that come in pieces; holds one piece."""

    def __init__(self, pieces: Iterator[pa.Table]) -> None:
        self._pieces = pieces
        self._piece: pa.Table | None = None
        self._at = 0
        self.last: tuple[str, int] | None = None
        """Symbol and time of the last row held; None once it has ended."""
        self._load()

    def take(self, frontier: tuple[str, int]) -> pa.Table | None:
        """Hand out what is held and not above the frontier."""
        if self._piece is None:
            return None
        end = self._end(frontier)
        if end == self._at:
            return None
        taken = self._piece.slice(self._at, end - self._at)
        self._at = end
        if end == self._piece.num_rows:
            self._load()
        return taken

    def _end(self, frontier: tuple[str, int]) -> int:
        for symbol, start, end in self._runs:
            if symbol == frontier[0]:
                return start + int(np.searchsorted(self._times[start:end], frontier[1], side="right"))
            if symbol > frontier[0]:
                return start
        return len(self._times)

    def _load(self) -> None:
        before, self.last = self.last, None
        self._piece = next((piece for piece in self._pieces if piece.num_rows), None)
        self._at = 0
        if self._piece is None:
            return
        symbols = self._piece.column("symbol").chunk(0)
        names = symbols.dictionary.to_pylist()
        codes = symbols.indices.to_numpy()
        self._times = self._piece.column("timestamp").chunk(0).view(pa.int64()).to_numpy()
        bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
        self._runs = [(names[codes[start]], start, end) for start, end in pairwise(bounds)]
        first = (self._runs[0][0], int(self._times[0]))
        in_order = all(low[0] < high[0] for low, high in pairwise(self._runs))
        steps = np.diff(self._times) >= 0
        steps[[start - 1 for _, start, _ in self._runs[1:]]] = True
        if not in_order or not steps.all() or (before is not None and first < before):
            raise CannotCompact("a large file is not sorted by symbol and timestamp")
        self.last = (self._runs[-1][0], int(self._times[-1]))


def _merged(streams: list[_Stream], alive: Callable[[], None]) -> Iterator[pa.Table]:
    while True:
        alive()
        lasts = [stream.last for stream in streams if stream.last is not None]
        if not lasts:
            return
        frontier = min(lasts)
        taken = [piece for stream in streams if (piece := stream.take(frontier)) is not None]
        yield _sorted(taken)


def _sorted(pieces: list[pa.Table]) -> pa.Table:
    return sort_rows(_one_chunk(pa.concat_tables(pieces)))


def _one_chunk(rows: pa.Table) -> pa.Table:
    return rows.unify_dictionaries().combine_chunks()


def _slices(rows: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, ROWS_PER_GROUP):
        yield rows.slice(start, ROWS_PER_GROUP)


def _even(pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Cut sorted rows anew, so that each table is a whole row group."""
    held: list[pa.Table] = []
    rows = 0
    for piece in pieces:
        held.append(piece)
        rows += piece.num_rows
        while rows >= ROWS_PER_GROUP:
            joined = held[0] if len(held) == 1 else _one_chunk(pa.concat_tables(held))
            yield joined.slice(0, ROWS_PER_GROUP)
            held, rows = [joined.slice(ROWS_PER_GROUP)], rows - ROWS_PER_GROUP
    if rows:
        yield held[0] if len(held) == 1 else _one_chunk(pa.concat_tables(held))
