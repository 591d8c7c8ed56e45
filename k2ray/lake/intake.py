"""9. Kafka records -> rows that the ledger calls new, gathered until their commit is due.

`Intake` first reads records, which changes nothing and may have to wait for a schema; then it lets the ledger decide
in chunks of many records, and adds to a `Batch`: the rows, how far each partition was read, and what could not be read.
One unreadable record, or one row with an impossible time, goes to the dead letters by itself; its neighbours go on.

Next in the flow: `stage.py` writes a batch's rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2ray.errors import BadRecord
from k2ray.lake.progress import Offset, PartitionKey
from k2ray.ledger import Ledger, LedgerEvent
from k2ray.log.records import Fetched, LogRecord, RecordRun, last_offset, record_count
from k2ray.wire.codec import Seal, encode_rows, is_ours
from k2ray.wire.reader import Refused, RowReader
from k2ray.wire.schemas import Schemas

EARLIEST_US = -2_208_988_800_000_000
LATEST_US = 7_258_118_400_000_000
"""Event times from 1900 to 2200 are stored: Python and many readers cannot even show what lies beyond year 9999."""

SAMPLE_ROWS = 4_096
"""Rows of a chunk whose times are kept to measure freshness; enough for a p99, whatever the batch's size."""


@dataclass(frozen=True)
class DeadLetter:
    """What could not be stored, with its raw bytes."""

    topic: str
    partition: int
    offset: int
    raw: bytes
    reason: str
    at_us: int

    @property
    def source(self) -> str:
        """Where it was found, for people: topic, partition and offset."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass
class Batch:
    """Rows for one commit, and how far the log was read for them.

    Attributes:
        pieces: New rows in the wire schema, in the order they were read.
        end: Next offset of each partition that moved.
        rows: Rows in `pieces`.
        bytes: Their Arrow size.
        records: Records read.
        duplicates: Rows that the ledger had covered already.
        dead: Records and rows that cannot be stored.
        events: What the ledger wants operators to know.
        event_times: Samples of live rows' event times, UTC microseconds.
        first_row_s: Monotonic time at which the first new row was read; None without rows.
        first_record_s: Monotonic time at which the first record was read; None without records.
    """

    pieces: list[pa.RecordBatch] = field(default_factory=list)
    end: dict[PartitionKey, Offset] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0
    records: int = 0
    duplicates: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    events: list[LedgerEvent] = field(default_factory=list)
    event_times: list[np.ndarray] = field(default_factory=list)
    first_row_s: float | None = None
    first_record_s: float | None = None

    def due_in_s(self, now_s: float, interval_s: float, idle_interval_s: float) -> float | None:
        """Return the seconds until a commit is due by time, None if there is nothing to commit.

        Args:
            now_s: Monotonic clock.
            interval_s: From the first new row.
            idle_interval_s: From the first record, where duplicates alone moved the offsets.
        """
        if self.first_row_s is not None:
            return self.first_row_s + interval_s - now_s
        if self.first_record_s is not None:
            return self.first_record_s + idle_interval_s - now_s
        return None


@dataclass
class ReadPartition:
    """What was read of one partition, before anything was decided.

    Attributes:
        key: Which one.
        end: The next offset.
        records: How many were read.
        pieces: Rows and seals in log order.
        dead: What cannot be stored.
    """

    key: PartitionKey
    end: Offset
    records: int = 0
    pieces: list[pa.RecordBatch | Seal] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)


class Intake:
    """Decides about records of one table, in log order of each partition.

    Args:
        table_name: Whose rows these topics carry; any other's are dead letters.
        ledger: What was seen; changed by every call of `take`.
        schemas: Knows what Avro's schema ids stand for.
    """

    def __init__(self, table_name: str, ledger: Ledger, schemas: Schemas) -> None:
        self._table_name = table_name
        self._reader = RowReader(table_name, schemas)
        self.ledger = ledger

    def read(self, items: Iterable[Fetched]) -> list[ReadPartition]:
        """Read records without deciding anything: whatever is raised, nothing has changed.

        Args:
            items: Ascending offsets within each partition.

        Raises:
            RegistryUnavailable: Nobody tells what an Avro schema id stands for; call again with the same items.
        """
        found: dict[PartitionKey, ReadPartition] = {}
        for item in items:
            key = (item.topic, item.partition)
            part = found.get(key)
            if part is None:
                part = found[key] = ReadPartition(key, Offset(0))
            part.end = Offset(last_offset(item) + 1, item.leader_epoch)
            part.records += record_count(item)
            if isinstance(item, RecordRun):
                self._read_run(item, part)
            else:
                self._read_one(item, part)
        return sorted(found.values(), key=lambda part: part.key)

    def take(self, parts: Iterable[ReadPartition], batch: Batch, now_s: float) -> None:
        """Decide about what was read and add what is new to `batch`.

        Args:
            parts: Of `read`.
            batch: Grows.
            now_s: Monotonic clock, for when the batch is due.
        """
        before = batch.rows
        for part in parts:
            batch.records += part.records
            batch.dead += part.dead
            run: list[pa.RecordBatch] = []
            for piece in part.pieces:
                if isinstance(piece, Seal):
                    self._decide(part.key, run, batch)
                    run = []
                    self.ledger.seal(part.key, piece)
                else:
                    run.append(piece)
            self._decide(part.key, run, batch)
            batch.end[part.key] = part.end
        if batch.records and batch.first_record_s is None:
            batch.first_record_s = now_s
        if batch.rows > before and batch.first_row_s is None:
            batch.first_row_s = now_s

    def _read_one(self, record: LogRecord, part: ReadPartition) -> None:
        if not is_ours(record.headers):
            self._read_run(RecordRun.of(record), part)
            return
        try:
            found = self._reader.one(record)
        except BadRecord as error:
            part.dead.append(_dead(record, record.value, str(error)))
            return
        if isinstance(found, Seal):
            part.pieces.append(found)
        elif found.num_rows:
            part.pieces.append(self._possible(record, found, part))

    def _possible(self, record: LogRecord, rows: pa.RecordBatch, part: ReadPartition) -> pa.RecordBatch:
        """Return the rows whose event time can be stored; the others become a dead letter of their own."""
        good = _possible_times(rows)
        if good.all():
            return rows
        bad = rows.filter(pa.array(~good))
        raw, _ = encode_rows(self._table_name, bad)
        part.dead.append(_dead(record, raw, f"event time of {bad.num_rows} rows outside the years 1900 to 2199"))
        return rows.filter(pa.array(good))

    def _read_run(self, run: RecordRun, part: ReadPartition) -> None:
        pieces, refused = self._reader.run(run)
        for rows, places in pieces:
            if not rows.num_rows:
                continue
            good = _possible_times(rows)
            if good.all():
                part.pieces.append(rows)
                continue
            reason = "event time outside the years 1900 to 2199"
            refused += [Refused(int(at), reason) for at in places[~good]]
            part.pieces.append(rows.filter(pa.array(good)))
        for at, reason in sorted(refused):
            record = run.single(at)
            part.dead.append(_dead(record, record.value, reason))

    def _decide(self, key: PartitionKey, run: list[pa.RecordBatch], batch: Batch) -> None:
        if not run:
            return
        rows = run[0] if len(run) == 1 else pa.concat_batches(run)
        if not rows.num_rows:
            return
        decision = self.ledger.decide(key, rows)
        batch.duplicates += decision.duplicates
        batch.events += decision.events
        if decision.space is not None:
            column = rows.schema.get_field_index("sequence_space")
            space = decision.space
            if not pa.types.is_dictionary(space.type):
                space = space.dictionary_encode()
            rows = rows.set_column(column, rows.schema.field(column), space)
        if decision.duplicates:
            rows = rows.filter(pa.array(decision.keep))
        if not rows.num_rows:
            return
        batch.pieces.append(rows)
        batch.rows += rows.num_rows
        batch.bytes += rows.nbytes
        batch.event_times.append(_live_times(rows))


def _possible_times(rows: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    times = rows.column("timestamp").view(pa.int64()).to_numpy()
    if len(times) and EARLIEST_US <= times.min() and times.max() < LATEST_US:
        return np.ones(len(times), dtype=np.bool_)
    possible: npt.NDArray[np.bool_] = (times >= EARLIEST_US) & (times < LATEST_US)
    return possible


def _dead(record: LogRecord, raw: bytes, reason: str) -> DeadLetter:
    return DeadLetter(record.topic, record.partition, record.offset, raw, reason, record.timestamp_us)


def _live_times(rows: pa.RecordBatch) -> np.ndarray:
    step = max(1, rows.num_rows // SAMPLE_ROWS)
    times: np.ndarray = rows.column("timestamp").view(pa.int64()).to_numpy()[::step]
    origins = rows.column("origin")
    names = origins.dictionary.to_pylist()
    if names == ["live"]:
        return times
    live = np.array([name == "live" for name in names], dtype=bool)
    sampled: np.ndarray = times[live[origins.indices.to_numpy()[::step]]]
    return sampled
