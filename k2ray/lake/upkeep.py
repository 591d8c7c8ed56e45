"""Keep a table small while it grows, so that the thousandth commit costs what the first did.

Each look at the table:
1. tags the head once an hour, so that `as of` has something to stand on when snapshots are gone;
2. expires by count, once enough has gathered: the newest snapshots, tags, leased snapshots and everything down to the
   newest progress key stay. By age alone a day of 5 s commits would be 17,280 snapshots;
3. deletes what only expired snapshots named: manifest lists, manifests, ledger files;
4. now and then sweeps the folders for files of dead attempts (`sweep.py`).

1 and 2 are one commit with `AssertRefSnapshotId(main)`: without it an expiry that races an operator's rollback could
remove what main has become. Old metadata.json files are deleted by every commit (table properties).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io import FileIO
from pyiceberg.manifest import read_manifest_list
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import (
    AssertRefSnapshotId,
    RemoveSnapshotRefUpdate,
    RemoveSnapshotsUpdate,
    SetSnapshotRefUpdate,
    TableUpdate,
    UpdatesAndRequirements,
    UpdateTableMetadata,
)

from k2ray.clock import Clock, SystemClock
from k2ray.errors import CatalogUnavailable, OperatorNeeded
from k2ray.lake.catalog import load_table, open_catalog
from k2ray.lake.durable import AWAY
from k2ray.lake.progress import LEDGER_KEY, OFFSETS_KEY, ancestry
from k2ray.lake.sweep import SWEEP_INTERVAL_S, sweep
from k2ray.layout import DataDir
from k2ray.logs import get_logger
from k2ray.settings import Settings, Upkeep

log = get_logger(__name__)

MAIN = "main"
TAG_PREFIX = "hourly-"
_TAG_FORMAT = f"{TAG_PREFIX}%Y-%m-%dT%HZ"
COMMIT_ATTEMPTS = 5


@dataclass(frozen=True)
class UpkeepReport:
    """What one look did.

    Attributes:
        tagged: The tag that was set; None if this hour has one, or nothing is new.
        snapshots_expired: Snapshots that were removed.
        files_deleted: Files that were deleted.
    """

    tagged: str | None = None
    snapshots_expired: int = 0
    files_deleted: int = 0


@dataclass(frozen=True)
class Plan:
    """What one commit of upkeep changes."""

    head: int
    tag: str | None
    old_tags: tuple[str, ...]
    expire: tuple[int, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return self.tag is None and not self.old_tags and not self.expire


class TableUpkeep:
    """Upkeep of one table, beside its writer.

    Args:
        settings: All settings.
        layout: Where the default catalog and warehouse are.
        table_name: `trades` or `quotes`.
        clock: Time.
        catalog: None opens the one of the settings.
        leases: Asked for snapshot ids that somebody still reads; they stay.
    """

    def __init__(
        self,
        settings: Settings,
        layout: DataDir,
        table_name: str,
        *,
        clock: Clock | None = None,
        catalog: Catalog | None = None,
        leases: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._name = table_name
        self._clock = clock or SystemClock()
        self._catalog = catalog
        self._owns_catalog = catalog is None
        self._leases = leases
        self._manifests: dict[int, frozenset[str]] = {}
        self._swept_s: float | None = None

    def step(self) -> UpkeepReport:
        """Look at the table once; call it every `lake.upkeep.interval_s`.

        Raises:
            CatalogUnavailable: The catalog or the storage does not answer; call again after a pause.
            OperatorNeeded: The table carries no progress key.
        """
        if self._catalog is None:
            self._catalog = open_catalog(self._settings, self._layout)
        try:
            return self._step(self._catalog)
        except AWAY as error:
            raise CatalogUnavailable(f"upkeep of {self._name}: {error}") from error

    def close(self) -> None:
        """Leave."""
        if self._catalog is not None and self._owns_catalog:
            self._catalog.close()

    def _step(self, catalog: Catalog) -> UpkeepReport:
        for _ in range(COMMIT_ATTEMPTS):
            table = load_table(catalog, self._settings, self._name)
            if table is None or table.metadata.current_snapshot_id is None:
                return UpkeepReport()
            now = datetime.fromtimestamp(self._clock.now_us() / 1_000_000, UTC)
            plan = make_plan(table.metadata, self._settings.lake.upkeep, now, self._leases())
            if plan.is_empty:
                return UpkeepReport(files_deleted=self._sweep(table))
            expired = [snapshot for snapshot in table.metadata.snapshots if snapshot.snapshot_id in set(plan.expire)]
            named = self._names(table.io, expired)
            try:
                _Change(table, plan).commit()
            except CommitFailedException:
                continue  # the writer was faster: look anew
            deleted = self._delete_unnamed(table, named)
            log.info("upkeep", table=self._name, tagged=plan.tag, expired=len(expired), files_deleted=deleted)
            return UpkeepReport(plan.tag, len(expired), deleted + self._sweep(table))
        raise CatalogUnavailable(f"upkeep of {self._name}: lost {COMMIT_ATTEMPTS} races in a row")

    def _names(self, io: FileIO, snapshots: Collection[Snapshot]) -> set[str]:
        """Return the locations that snapshots name: manifest list, manifests, ledger file."""
        found: set[str] = set()
        for snapshot in snapshots:
            found.add(snapshot.manifest_list)
            if snapshot.snapshot_id not in self._manifests:
                listed = read_manifest_list(io.new_input(snapshot.manifest_list))
                self._manifests[snapshot.snapshot_id] = frozenset(manifest.manifest_path for manifest in listed)
            found |= self._manifests[snapshot.snapshot_id]
            ledger = snapshot.summary.additional_properties.get(LEDGER_KEY) if snapshot.summary else None
            if ledger is not None:
                found.add(ledger)
        return found

    def _delete_unnamed(self, table: Table, named: set[str]) -> int:
        """Delete what no retained snapshot names any more. A kill in between leaves files to the sweep."""
        retained = table.metadata.snapshots
        unnamed = named - self._names(table.io, retained)
        for location in unnamed:
            _delete(table.io, location)
        kept = {snapshot.snapshot_id for snapshot in retained}
        self._manifests = {key: value for key, value in self._manifests.items() if key in kept}
        return len(unnamed)

    def _sweep(self, table: Table) -> int:
        now_s = self._clock.monotonic_s()
        if self._swept_s is not None and now_s - self._swept_s < SWEEP_INTERVAL_S:
            return 0
        self._swept_s = now_s
        dead = sweep(table, self._names(table.io, table.metadata.snapshots))
        for location in dead:
            _delete(table.io, location)
        return len(dead)


class _Change(UpdateTableMetadata["_Change"]):
    """Tags and expiry in one commit that fails if main has moved."""

    def __init__(self, table: Table, plan: Plan) -> None:
        super().__init__(table.transaction())
        self._plan = plan

    def _commit(self) -> UpdatesAndRequirements:
        plan = self._plan
        updates: list[TableUpdate] = []
        if plan.tag is not None:
            updates.append(
                SetSnapshotRefUpdate(
                    ref_name=plan.tag,
                    type=SnapshotRefType.TAG,
                    snapshot_id=plan.head,
                    max_ref_age_ms=None,
                    max_snapshot_age_ms=None,
                    min_snapshots_to_keep=None,
                )
            )
        updates += [RemoveSnapshotRefUpdate(ref_name=tag) for tag in plan.old_tags]
        if plan.expire:
            updates.append(RemoveSnapshotsUpdate(snapshot_ids=list(plan.expire)))
        return tuple(updates), (AssertRefSnapshotId(ref=MAIN, snapshot_id=plan.head),)

    def commit(self) -> None:
        super().commit()
        self._transaction.commit_transaction()


def make_plan(metadata: TableMetadata, upkeep: Upkeep, now: datetime, leases: Collection[int]) -> Plan:
    """Decide about tags and snapshots.

    Args:
        metadata: The table's newest.
        upkeep: How much stays.
        now: Wall time, UTC.
        leases: Snapshot ids that somebody still reads.

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
    expire: tuple[int, ...] = ()
    # Down to the key nothing may go: a parent that is expired is cut off, and the key behind it would be lost.
    depth = max(upkeep.snapshots_kept, keyed + 1)
    kept = {snapshot.snapshot_id for snapshot in lineage[:depth]} | tagged | set(leases) | {head}
    surplus = [snapshot.snapshot_id for snapshot in metadata.snapshots if snapshot.snapshot_id not in kept]
    if len(surplus) >= upkeep.expire_every or (old_tags and surplus):
        expire = tuple(surplus)
    return Plan(head, None if tag in metadata.refs or head in tagged else tag, old_tags, expire)


def _has_key(snapshot: Snapshot) -> bool:
    return bool(snapshot.summary and OFFSETS_KEY in snapshot.summary.additional_properties)


def _is_old(tag: str, now: datetime, retention_s: int) -> bool:
    if not tag.startswith(TAG_PREFIX):
        return False  # somebody else's tag: theirs to remove
    try:
        hour = datetime.strptime(tag, _TAG_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False
    return (now - hour).total_seconds() > retention_s


def _delete(io: FileIO, location: str) -> None:
    try:
        io.delete(location)
    except FileNotFoundError:
        return
