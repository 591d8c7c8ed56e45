"""One file of the spool: an Arrow IPC stream whose rows are Kafka records, one batch an append.

| column | meaning |
|---|---|
| topic, partition | where the record goes |
| rows | rows of market data in it, for counting |
| value | the record's bytes, as Kafka will get them |
| headers | name -> bytes |

A stream needs no footer, so a file whose writer was killed reads up to its last whole batch. Not its job: which file is
next, and bounds (`spool.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from k2ray.wire.codec import Headers

SCHEMA = pa.schema(
    [
        pa.field("topic", pa.string(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("value", pa.large_binary(), nullable=False),
        pa.field("headers", pa.map_(pa.string(), pa.binary()), nullable=False),
    ]
)


class SpoolRecord(NamedTuple):
    """A record that waits for Kafka: topic, partition, value, headers, and how many rows of market data it holds."""

    topic: str
    partition: int
    value: bytes
    headers: Headers
    rows: int


class Content(NamedTuple):
    """What a file holds: whole records, their rows, and bytes at its end that are not a whole record."""

    records: int
    rows: int
    torn_bytes: int


class SpoolWriter:
    """Appends records to a new file. Each append reaches the kernel at once, so it survives this process's death.

    Args:
        path: Must not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.records = 0
        self._file = path.open("xb", buffering=0)
        self._sink = pa.PythonFile(self._file, mode="w")
        try:
            self._stream = pa.ipc.new_stream(self._sink, SCHEMA)
        except OSError:  # a full disk: each record tries anew, and must not leave a file behind
            self._file.close()
            path.unlink()
            raise
        self._synced = True

    def append(self, records: Sequence[SpoolRecord]) -> int:
        """Write records as one batch; returns the bytes that the file grew by.

        Raises:
            OSError: The disk is full or broken. The file ends with a torn batch: close it, go on with another.
        """
        topics, partitions, values, headers, rows = zip(*records, strict=True)
        columns = {"topic": topics, "partition": partitions, "rows": rows, "value": values, "headers": headers}
        batch = pa.RecordBatch.from_pydict(columns, schema=SCHEMA)
        self._stream.write_batch(batch)
        grown: int = self._file.tell() - self.bytes
        self.bytes += grown
        self.records += len(records)
        self._synced = False
        return grown

    def sync(self) -> None:
        """Make what was appended survive a power cut too."""
        if not self._synced:
            os.fsync(self._file.fileno())
            self._synced = True

    def close(self) -> None:
        """Sync and close; the stream's end mark is left out, as it would be after a kill."""
        try:
            self.sync()
        finally:
            self._file.close()


def read_records(path: Path) -> Iterator[SpoolRecord]:
    """Yield the file's whole records in order."""
    for batch in _batches(path):
        for row in batch.to_pylist():
            yield SpoolRecord(row["topic"], row["partition"], row["value"], row["headers"], row["rows"])


def measure(path: Path) -> Content:
    """Count what a file holds without reading its values."""
    records = rows = whole = 0
    if path.stat().st_size == 0:
        return Content(0, 0, 0)
    with pa.memory_map(str(path)) as source:
        try:
            stream = pa.ipc.open_stream(source)
            whole = source.tell()
            while True:
                batch = stream.read_next_batch()
                records += batch.num_rows
                rows += sum(batch.column("rows").to_pylist())
                whole = source.tell()
        except (StopIteration, pa.ArrowException, OSError):
            pass
        return Content(records, rows, source.size() - whole)


def sync_folder(folder: Path) -> None:
    """Make the folder's list of files survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.stat().st_size == 0:
        return
    with pa.memory_map(str(path)) as source:
        try:
            stream = pa.ipc.open_stream(source)
            while True:
                yield stream.read_next_batch()
        except (StopIteration, pa.ArrowException, OSError):
            return
