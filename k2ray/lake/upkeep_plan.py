"""Which snapshots expire and which are tagged. Pure.

Tags are what `as of` stands on once snapshots are gone: one an hour for a day, then one every six hours until
`tag_retention_s`. Each tagged snapshot costs every commit some metadata, and keeps the files that it names on disk; so
a tag waits for the last hour's compaction, lest it keep all of that hour's small files for a week.

Next in the flow: `upkeep.py` commits it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot

from k2ray.errors import OperatorNeeded
from k2ray.lake.progress import OFFSETS_KEY, ancestry
from k2ray.settings import Upkeep

MAIN = "main"
TAG_PREFIX = "hourly-"
_TAG_FORMAT = f"{TAG_PREFIX}%Y-%m-%dT%HZ"

DENSE_S = 86_400
SPARSE_HOURS = 6
"""After a day, tags of every sixth hour stay."""

PATIENCE_MINUTES = 45
"""A tag waits for the compaction until this minute of the hour."""

MAX_EXPIRED = 500
"""Snapshots that one look expires: each one's manifest list is read first, and a neglected table may have 20,000."""


@dataclass(frozen=True)
class Plan:
    """What one commit of upkeep changes.

    Attributes:
        head: Snapshot that main must still be at.
        tag: To be set on it; None if this hour has one, or nothing is new.
        old_tags: To be removed.
        expire: Snapshots to be removed, oldest first.
        left: Snapshots that wait for the next look.
    """

    head: int
    tag: str | None
    old_tags: tuple[str, ...]
    expire: tuple[int, ...]
    left: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return self.tag is None and not self.old_tags and not self.expire


def make_plan(
    metadata: TableMetadata,
    upkeep: Upkeep,
    now: datetime,
    leases: Collection[int] | None,
    *,
    compaction_due: bool = False,
) -> Plan:
    """Decide about tags and snapshots.

    Args:
        metadata: The table's newest.
        upkeep: How much stays.
        now: Wall time, UTC.
        leases: Snapshot ids that somebody still reads; None: they are not known now, so nothing expires.
        compaction_due: Whether small files of past hours are about to be replaced.

    Raises:
        OperatorNeeded: No snapshot carries a progress key; expiring could remove what a person needs to find it.
    """
    lineage = ancestry(metadata)
    keyed = next((depth for depth, snapshot in enumerate(lineage) if _has_key(snapshot)), None)
    if keyed is None:
        raise OperatorNeeded("no snapshot of the table carries a progress key")
    head = lineage[0].snapshot_id
    old_tags = tuple(tag for tag in metadata.refs if _is_old(tag, now, upkeep.tag_retention_s))
    tag = now.strftime(_TAG_FORMAT)
    tagged = {ref.snapshot_id for name, ref in metadata.refs.items() if name not in old_tags and name != MAIN}
    waits = compaction_due and now.minute < PATIENCE_MINUTES
    wanted = None if waits or tag in metadata.refs or head in tagged else tag
    # Down to the key nothing may go: a parent that is expired is cut off, and the key behind it would be lost.
    depth = max(upkeep.snapshots_kept, keyed + 1)
    kept = {snapshot.snapshot_id for snapshot in lineage[:depth]} | tagged | set(leases or ()) | {head}
    surplus = [snapshot.snapshot_id for snapshot in metadata.snapshots if snapshot.snapshot_id not in kept]
    due = len(surplus) >= upkeep.expire_every or (old_tags and surplus)
    expire = tuple(surplus[:MAX_EXPIRED]) if due and leases is not None else ()
    return Plan(head, wanted, old_tags, expire, left=len(surplus) - len(expire))


def _has_key(snapshot: Snapshot) -> bool:
    return bool(snapshot.summary and OFFSETS_KEY in snapshot.summary.additional_properties)


def _is_old(tag: str, now: datetime, retention_s: int) -> bool:
    if not tag.startswith(TAG_PREFIX):
        return False  # somebody else's tag: theirs to remove
    try:
        hour = datetime.strptime(tag, _TAG_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False
    age_s = (now - hour).total_seconds()
    return age_s > retention_s or (age_s > DENSE_S and hour.hour % SPARSE_HOURS != 0)
