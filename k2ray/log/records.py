"""What comes out of Kafka: single records, and runs of records that have no headers (one row each).

A run exists so that a hundred thousand small records a second cost no Python object each beyond their bytes.

Next in the flow: `wire/reader.py` reads their bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

PartitionKey = tuple[str, int]
"""Topic and partition."""


class LogRecord(NamedTuple):
    """One record as it came, undecoded.

    Attributes:
        topic: Its topic.
        partition: Its partition.
        offset: Its offset.
        leader_epoch: Of the leader that wrote it; None where Kafka does not say.
        timestamp_us: When the producer made it, UTC microseconds (Kafka keeps milliseconds); 0 if not known.
        value: Its bytes.
        headers: Name and bytes of each header.
    """

    topic: str
    partition: int
    offset: int
    leader_epoch: int | None
    timestamp_us: int
    value: bytes
    headers: list[tuple[str, bytes]]


class RecordRun(NamedTuple):
    """Records of one partition without headers, one behind the other, undecoded.

    Attributes:
        topic: Their topic.
        partition: Their partition.
        offsets: Of each; they ascend, but may skip what the log has no record for.
        leader_epoch: Of the last one; None where Kafka does not say.
        timestamps_us: When the producer made each; 0 if not known.
        values: The bytes of each.
    """

    topic: str
    partition: int
    offsets: list[int]
    leader_epoch: int | None
    timestamps_us: list[int]
    values: list[bytes]

    @classmethod
    def of(cls, record: LogRecord) -> RecordRun:
        """Return a run of one record; its headers are left behind."""
        return cls(
            record.topic,
            record.partition,
            [record.offset],
            record.leader_epoch,
            [record.timestamp_us],
            [record.value],
        )

    def single(self, index: int) -> LogRecord:
        """Return one of them as a record of its own."""
        return LogRecord(
            self.topic,
            self.partition,
            self.offsets[index],
            self.leader_epoch,
            self.timestamps_us[index],
            self.values[index],
            [],
        )


Fetched = LogRecord | RecordRun


def last_offset(item: Fetched) -> int:
    """Return the offset of a record, or of the last one of a run."""
    return item.offsets[-1] if isinstance(item, RecordRun) else item.offset


def record_count(item: Fetched) -> int:
    """Return how many records these are."""
    return len(item.offsets) if isinstance(item, RecordRun) else 1


def in_runs(records: Iterable[LogRecord]) -> list[Fetched]:
    """Join records without headers that follow each other in their partition; the order in a partition stays."""
    found: list[Fetched] = []
    open_runs: dict[PartitionKey, RecordRun] = {}
    for record in records:
        key = (record.topic, record.partition)
        if record.headers:
            open_runs.pop(key, None)
            found.append(record)
            continue
        run = open_runs.get(key)
        if run is None or run.leader_epoch != record.leader_epoch:
            run = open_runs[key] = RecordRun(*key, [], record.leader_epoch, [], [])
            found.append(run)
        run.offsets.append(record.offset)
        run.timestamps_us.append(record.timestamp_us)
        run.values.append(record.value)
    return found
