"""Everything that a writer holds in memory between two commits, in one object: when the world moves, it is dropped.

Built from the newest snapshot alone: the table, the ledger and the offsets of its key, held against the log. Grows by
what is read; `hand_over` cuts off what was gathered as the next commit.

Next in the flow: `landing.py` brings it into the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from k2ray.errors import OperatorNeeded
from k2ray.lake.catalog import ensure_table
from k2ray.lake.commit import Faults
from k2ray.lake.intake import Batch, Intake
from k2ray.lake.landing import Landing
from k2ray.lake.ledger_file import dump_ledger, load_ledger
from k2ray.lake.positions import Start, find_start
from k2ray.lake.progress import (
    HOLES_KEY,
    REWINDS_KEY,
    Offset,
    PartitionKey,
    Progress,
    committed_progress,
    jumps_to_summary,
)
from k2ray.lake.reading import Reading
from k2ray.log.consumer import ClusterIds, OffsetLost, Position
from k2ray.log.records import Fetched
from k2ray.settings import Settings
from k2ray.wire.schemas import Schemas


class Log(Protocol):
    """What a writer needs of Kafka; `log.consumer.LogReader` is one."""

    def cluster(self, topics: Sequence[str]) -> ClusterIds: ...  # noqa: D102
    def assign(self, positions: Mapping[PartitionKey, Position]) -> None: ...  # noqa: D102
    def fetch(self, max_records: int, timeout_s: float) -> list[Fetched]: ...  # noqa: D102
    def watermarks(self, key: PartitionKey, *, timeout_s: float = ...) -> tuple[int, int]: ...  # noqa: D102
    def cached_end(self, key: PartitionKey) -> int | None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class World:
    """A writer's view of one table and its log.

    Attributes:
        table: As of the newest commit that this writer knows.
        progress: The key that it started from.
        start: Where reading started.
        intake: Decides; holds the ledger as of everything that was read.
        batch: What was read since the last `hand_over`.
        reading: How far it was read.
    """

    def __init__(self, table: Table, table_name: str, progress: Progress, start: Start, schemas: Schemas) -> None:
        self.table = table
        self.progress = progress
        self.start = start
        self.intake = Intake(table_name, load_ledger(table.io, progress, table_name), schemas)
        self.batch = Batch()
        self.reading = Reading({key: at.next for key, at in start.positions.items()})
        self._base: Mapping[PartitionKey, Offset] = dict(progress.offsets)

    def take(self, items: Sequence[Fetched], now_s: float) -> tuple[int, int]:
        """Decide about records that were read; returns new rows and duplicates.

        Raises:
            RegistryUnavailable: Nothing was decided; call again with the same records.
        """
        parts = self.intake.read(items)
        rows, duplicates = self.batch.rows, self.batch.duplicates
        self.intake.take(parts, self.batch, now_s)
        rows, duplicates = self.batch.rows - rows, self.batch.duplicates - duplicates
        self.reading.note(items, rows + duplicates)
        return rows, duplicates

    def hand_over(self, now_s: float) -> Landing:
        """Cut off what was gathered, with the ledger as of its end; what is read next belongs to the next batch."""
        batch, self.batch = self.batch, Batch()
        return self._landing(batch, batch.end, {}, now_s)

    def jumps(self, now_s: float) -> Landing | None:
        """Return the commit that records holes and rewinds before anything is read; None if there are none."""
        holes, rewinds = list(self.start.holes), list(self.start.rewinds)
        end = {(jump.topic, jump.partition): Offset(jump.end) for jump in [*holes, *rewinds]}
        if not end:
            return None
        notes = {**jumps_to_summary(HOLES_KEY, holes), **jumps_to_summary(REWINDS_KEY, rewinds)}
        return self._landing(Batch(), end, notes, now_s)

    def _landing(
        self, batch: Batch, end: Mapping[PartitionKey, Offset], notes: Mapping[str, str], now_s: float
    ) -> Landing:
        base, self._base = self._base, {**self._base, **end}
        return Landing(
            batch=batch,
            start=base,
            end=end,
            ledger=dump_ledger(self.intake.ledger, self._base, self.start.topics),
            gaps=self.intake.ledger.gaps(),
            cluster=self.start.cluster,
            topics=self.start.topics,
            notes=notes,
            started_s=now_s,
        )


def open_world(
    catalog: Catalog,
    settings: Settings,
    table_name: str,
    topics: Sequence[str],
    log: Log,
    now_us: int,
    lost: OffsetLost | None,
    faults: Faults,
    schemas: Schemas,
) -> World:
    """Load the newest snapshot's key, or make the table, and hold it against the log.

    Args:
        catalog: Open.
        settings: All settings.
        table_name: `trades` or `quotes`.
        topics: Its topics.
        log: Kafka; nothing is assigned yet.
        now_us: For the record of holes and rewinds.
        lost: Why the last world ended, if the log lost its position.
        faults: Called at `before_genesis` and `genesis`.
        schemas: Knows what Avro's schema ids stand for.

    Raises:
        OperatorNeeded: Another Kafka or topic, a table without key, an unreadable ledger. Stop.
        TryAgain: Catalog or Kafka away, or a topic does not exist yet. Call again after a pause.
    """
    cluster = log.cluster(topics)
    table = ensure_table(
        catalog,
        settings,
        table_name,
        {topic: ids.partitions for topic, ids in cluster.topics.items()},
        cluster=cluster.cluster_id,
        topics={topic: ids.topic_id for topic, ids in cluster.topics.items()},
        faults=faults,
    )
    progress = committed_progress(table.metadata)
    if progress is None:
        raise OperatorNeeded(f"{table_name}: lost its progress key while it was opened")
    start = find_start(progress, topics, cluster, log.watermarks, now_us, lost)
    return World(table, table_name, progress, start, schemas)
