"""From a decided batch to a landed snapshot, in a thread of its own: dead letters, files, ledger, commit.

Everything that a retry must not repeat blindly is kept in the `Landing`: which files are staged, whether an attempt was
made whose outcome nobody knows. Calling `run` again goes on from there.

Next in the flow: `commit.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from k2ray.errors import BrokerUnavailable
from k2ray.lake.commit import Append, Faults, Landed, commit_append
from k2ray.lake.durable import AWAY, remove_quietly, unavailable
from k2ray.lake.intake import Batch, DeadLetter
from k2ray.lake.progress import Offset, PartitionKey
from k2ray.lake.stage import Origin, concat_rows, ledger_location, stage
from k2ray.ledger import Gap

DEAD_LETTER_TIMEOUT_S = 15.0


class DeadLetters(Protocol):
    """Where records that cannot be stored go; `log.producer.LogProducer` is one."""

    def dead_letter(self, exchange: str, raw: bytes, reason: str, *, source: str, at_us: int) -> None:
        """Hand over one dead letter."""

    def flush(self, timeout_s: float) -> bool:
        """Return whether everything handed over is safely stored."""

    def close(self, timeout_s: float) -> object:
        """Leave."""


@dataclass
class Landing:
    """One batch on its way into the table.

    Attributes:
        batch: Its rows and offsets.
        start: Offsets of all partitions before it.
        end: Next offsets of the partitions that it moves.
        ledger: Content of the ledger file as of `end`.
        gaps: Missing id ranges as of `end`.
        cluster: Kafka's cluster id.
        topics: Topic name -> topic id.
        notes: More summary properties (holes, rewinds).
        started_s: Monotonic time at which it was handed over.
    """

    batch: Batch
    start: Mapping[PartitionKey, Offset]
    end: Mapping[PartitionKey, Offset]
    ledger: bytes
    gaps: Sequence[Gap]
    cluster: str
    topics: Mapping[str, str]
    started_s: float
    notes: Mapping[str, str] = field(default_factory=dict)
    _letters_delivered: bool = False
    _files: list[DataFile] | None = None
    _ledger_location: str | None = None
    _attempted: bool = False

    def run(self, table: Table, table_name: str, letters: Callable[[], DeadLetters], faults: Faults) -> Landed:
        """Bring the batch into the table; after an error call again.

        Raises:
            BrokerUnavailable: Dead letters cannot be delivered; nothing may be committed past them. Call again.
            CatalogUnavailable: Catalog or storage away; call again, it looks whether it landed.
            WorldMoved: Somebody else committed: drop this and everything read after it.
            OperatorNeeded: The table lost its progress key.
        """
        if self.batch.dead and not self._letters_delivered:
            _deliver(self.batch.dead, letters())
            self._letters_delivered = True
        faults("before_stage")
        if self._files is None:
            rows = self.batch.pieces
            self._files = stage(table, table_name, concat_rows(rows), self._origin(), faults) if rows else []
        faults("staged")
        if self._ledger_location is None:
            self._ledger_location = self._write_ledger(table)
        append = Append(
            files=tuple(self._files),
            start=self.start,
            end=self.end,
            ledger=self._ledger_location,
            cluster=self.cluster,
            topics=self.topics,
            notes=self.notes,
        )
        look_first, self._attempted = self._attempted, True
        landed = commit_append(table, append, look_first=look_first, faults=faults)
        faults("after_commit")
        return landed

    def _origin(self) -> Origin:
        """Name the partition that moves furthest: the first whose committed offset will pass the batch's start."""
        moves = {key: (self.start[key].next if key in self.start else 0, end.next) for key, end in self.end.items()}
        key = max(moves, key=lambda moved: moves[moved][1] - moves[moved][0])
        return Origin(self.topics[key[0]], key[1], *moves[key])

    def _write_ledger(self, table: Table) -> str:
        location = ledger_location(table)
        try:
            with table.io.new_output(location).create() as stream:
                stream.write(self.ledger)
        except AWAY as error:
            remove_quietly(table.io, location)
            raise unavailable(f"{table.name()}: cannot write the ledger", error) from error
        return location


def _deliver(dead: list[DeadLetter], letters: DeadLetters) -> None:
    for letter in dead:
        exchange = letter.topic.rsplit(".", 1)[-1]
        letters.dead_letter(exchange, letter.raw, letter.reason, source=letter.source, at_us=letter.at_us)
    if not letters.flush(DEAD_LETTER_TIMEOUT_S):
        raise BrokerUnavailable(f"{len(dead)} dead letters are not delivered yet")
