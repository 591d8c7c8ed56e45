"""The progress key: what has been stored, as the newest snapshot's summary says it. Nothing else remembers progress.

| property | meaning |
|---|---|
| `k2ray.version` | of these properties; an unknown one stops the writer |
| `k2ray.offsets` | topic -> [[next offset, leader epoch or -1] of each partition]; an absent partition starts at 0 |
| `k2ray.ledger` | location of this commit's ledger file; absent as long as nothing was ever decided |
| `k2ray.cluster`, `k2ray.topics` | Kafka's cluster id, topic -> topic id; absent until the first commit that saw them |
| `k2ray.holes` | in the one commit that passed them: records that retention removed before they were read |
| `k2ray.rewinds` | in the one commit that made them: records that the broker had confirmed and lost |

A head without a key (somebody's delete) above a snapshot that has one is walked past.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot

from k2ray.errors import OperatorNeeded

VERSION = "1"
VERSION_KEY = "k2ray.version"
OFFSETS_KEY = "k2ray.offsets"
LEDGER_KEY = "k2ray.ledger"
CLUSTER_KEY = "k2ray.cluster"
TOPICS_KEY = "k2ray.topics"
HOLES_KEY = "k2ray.holes"
REWINDS_KEY = "k2ray.rewinds"

PartitionKey = tuple[str, int]


@dataclass(frozen=True)
class Offset:
    """Where the next record of a partition starts.

    Attributes:
        next: Offset of the first record that is not stored.
        epoch: Leader epoch of the last one that is; None where unknown. Never part of a comparison.
    """

    next: int
    epoch: int | None = field(default=None, compare=False)


START = Offset(0)
Offsets = Mapping[PartitionKey, Offset]


@dataclass(frozen=True)
class Jump:
    """Offsets that were moved without reading: [start, end) of a partition, at a time (UTC microseconds)."""

    topic: str
    partition: int
    start: int
    end: int
    at_us: int


@dataclass(frozen=True)
class Progress:
    """A decoded progress key.

    Attributes:
        snapshot_id: The snapshot that carries it (not the head, if foreign snapshots lie above).
        offsets: Next offset of every partition that was ever committed.
        ledger: Location of the ledger file; None before the first decision.
        cluster: Kafka's cluster id; None before the first commit that saw it.
        topics: Topic name -> topic id.
    """

    snapshot_id: int | None = None
    offsets: Offsets = field(default_factory=dict)
    ledger: str | None = None
    cluster: str | None = None
    topics: Mapping[str, str] = field(default_factory=dict)

    def offset(self, key: PartitionKey) -> Offset:
        """Return where a partition goes on; one never committed starts at 0, the earliest."""
        return self.offsets.get(key, START)

    def advanced(self, end: Offsets) -> dict[PartitionKey, Offset]:
        """Return the offsets with those of `end` in place of the older ones."""
        return {**self.offsets, **end}

    def to_summary(self) -> dict[str, str]:
        """Return the snapshot properties that say this."""
        summary = {VERSION_KEY: VERSION, OFFSETS_KEY: _encode_offsets(self.offsets)}
        if self.ledger is not None:
            summary[LEDGER_KEY] = self.ledger
        if self.cluster is not None:
            summary[CLUSTER_KEY] = self.cluster
        if self.topics:
            summary[TOPICS_KEY] = _compact(dict(sorted(self.topics.items())))
        return summary

    def with_ledger(self, ledger: str | None) -> Progress:
        """Return the same progress with another ledger file."""
        return replace(self, ledger=ledger)


def read_progress(snapshot: Snapshot) -> Progress | None:
    """Return the key of one snapshot, None if it carries none.

    Raises:
        OperatorNeeded: The key is there and cannot be read (another version, not ours). Stop; do not guess.
    """
    summary = snapshot.summary.additional_properties if snapshot.summary else {}
    if OFFSETS_KEY not in summary:
        return None
    version = summary.get(VERSION_KEY)
    if version != VERSION:
        raise OperatorNeeded(f"snapshot {snapshot.snapshot_id}: progress key version {version!r}, this is {VERSION!r}")
    try:
        offsets = {
            (topic, partition): Offset(int(pair[0]), int(pair[1]) if pair[1] >= 0 else None)
            for topic, pairs in json.loads(summary[OFFSETS_KEY]).items()
            for partition, pair in enumerate(pairs)
        }
        topics = json.loads(summary.get(TOPICS_KEY, "{}"))
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise OperatorNeeded(f"snapshot {snapshot.snapshot_id}: the progress key cannot be read: {error}") from error
    return Progress(snapshot.snapshot_id, offsets, summary.get(LEDGER_KEY), summary.get(CLUSTER_KEY), topics)


def committed_progress(metadata: TableMetadata) -> Progress | None:
    """Return the newest key at or below the head of main; None if there is none at all.

    Raises:
        OperatorNeeded: A key cannot be read.
    """
    for snapshot in ancestry(metadata):
        progress = read_progress(snapshot)
        if progress is not None:
            return progress
    return None


def ancestry(metadata: TableMetadata) -> list[Snapshot]:
    """Return the head of main and its retained ancestors, newest first."""
    by_id = {snapshot.snapshot_id: snapshot for snapshot in metadata.snapshots}
    head = metadata.current_snapshot_id
    found = []
    while head is not None and head in by_id:
        snapshot = by_id.pop(head)
        found.append(snapshot)
        head = snapshot.parent_snapshot_id
    return found


def jumps_to_summary(key: str, jumps: list[Jump]) -> dict[str, str]:
    """Return the snapshot property that records holes or rewinds; empty if there are none."""
    if not jumps:
        return {}
    return {key: _compact([[jump.topic, jump.partition, jump.start, jump.end, jump.at_us] for jump in jumps])}


def _encode_offsets(offsets: Offsets) -> str:
    by_topic: dict[str, list[list[int]]] = {}
    for (topic, partition), offset in sorted(offsets.items()):
        pairs = by_topic.setdefault(topic, [])
        while len(pairs) < partition:
            pairs.append([0, -1])
        pairs.append([offset.next, -1 if offset.epoch is None else offset.epoch])
    return _compact(by_topic)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
