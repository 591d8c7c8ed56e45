"""Keep a table fast while it grows, so that the hundred-thousandth commit costs what the first did.

Each look at the table:
1. compacts small files of closed hours (`compaction.py`), for about `look_budget_s`;
2. tags and expires by count, once enough has gathered (`upkeep_plan.py`): the newest snapshots, tags, leased snapshots
   and everything down to the newest progress key stay. By age alone a day of 5 s commits would be 17,280 snapshots;
3. deletes what only expired snapshots named: manifest lists, manifests, ledger files;
4. once an hour goes through the folders, a page a look, for files that nothing names any more (`sweep.py`).

2 is one commit with `AssertRefSnapshotId(main)`: without it an expiry that races an operator's rollback could remove
what main has become. Old metadata.json files are deleted by every commit (table properties). Two upkeeps at once (one
replaces the other) only lose races to each other: each commit is a compare-and-swap, and deleting twice is deleting.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table import Table
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

from k2ray import metrics
from k2ray.clock import Clock, SystemClock
from k2ray.errors import CatalogUnavailable, TryAgain
from k2ray.lake.catalog import load_table, open_catalog
from k2ray.lake.commit import Faults, no_faults
from k2ray.lake.compaction import CompactionReport, Compactor
from k2ray.lake.durable import AWAY, local_path, unavailable
from k2ray.lake.live_files import LiveFiles
from k2ray.lake.progress import LEDGER_KEY
from k2ray.lake.sweep import SWEEP_INTERVAL_S, Sweep
from k2ray.lake.upkeep_plan import MAIN, Plan, make_plan
from k2ray.layout import DataDir
from k2ray.logs import get_logger
from k2ray.settings import Settings

log = get_logger(__name__)

COMMIT_ATTEMPTS = 5
LOW_BYTES = 1_073_741_824
"""With less room than this, upkeep says so before anything stops."""


@dataclass(frozen=True)
class UpkeepReport:
    """What one look did.

    Attributes:
        tagged: The tag that was set; None if this hour has one, or nothing is new.
        snapshots_expired: Snapshots that were removed.
        files_deleted: Files that were deleted.
        compaction: What was compacted.
    """

    tagged: str | None = None
    snapshots_expired: int = 0
    files_deleted: int = 0
    compaction: CompactionReport = field(default_factory=CompactionReport)


class TableUpkeep:
    """Upkeep of one table, beside its writer.

    Args:
        settings: All settings.
        layout: Where the default catalog and warehouse are.
        table_name: `trades`, `quotes` or `gaps`.
        clock: Time.
        catalog: None opens the one of the settings.
        leases: Asked once a look for snapshot ids that somebody still reads; they stay. None: all stay for now.
        faults: Called at the compaction's points, `expiry`, `expired`, `mid_delete` and `mid_sweep`.
        alive: Called often during a compaction; raises `GaveWay` to stop it.
    """

    def __init__(
        self,
        settings: Settings,
        layout: DataDir,
        table_name: str,
        *,
        clock: Clock | None = None,
        catalog: Catalog | None = None,
        leases: Callable[[], Collection[int] | None] = tuple,
        faults: Faults = no_faults,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._name = table_name
        self._clock = clock or SystemClock()
        self._catalog = catalog
        self._owns_catalog = catalog is None
        self._leases = leases
        self._faults = faults
        self._live = LiveFiles()
        self._compactor = Compactor(
            table_name, settings.lake.upkeep, self._clock, layout.scratch, self._live, faults, alive
        )
        self._sweep: Sweep | None = None
        self._swept_s: float | None = None
        self._low: str | None = None

    @property
    def trouble(self) -> str | None:
        """What a person should know, None if there is nothing."""
        return self._low or self._compactor.trouble

    def step(self) -> UpkeepReport:
        """Look at the table once; call it every `lake.upkeep.interval_s`.

        Raises:
            CatalogUnavailable: The catalog or the storage does not answer; call again after a pause.
            OperatorNeeded: The table carries no progress key.
        """
        started_s = self._clock.monotonic_s()
        try:
            self._low = self._look_at_the_disk()
            if self._catalog is None:
                self._catalog = open_catalog(self._settings, self._layout)
            return self._step(self._catalog)
        except AWAY as error:
            raise unavailable(f"upkeep of {self._name}", error) from error
        finally:
            metrics.UPKEEP_SECONDS.labels(self._name).observe(self._clock.monotonic_s() - started_s)

    def close(self) -> None:
        """Leave."""
        if self._catalog is not None and self._owns_catalog:
            self._catalog.close()

    def _step(self, catalog: Catalog) -> UpkeepReport:
        table = load_table(catalog, self._settings, self._name)
        if table is None or table.metadata.current_snapshot_id is None:
            return UpkeepReport()
        report = UpkeepReport()
        failed: TryAgain | None = None
        if self._settings.lake.upkeep.compact:
            deadline_s = self._clock.monotonic_s() + self._settings.lake.upkeep.look_budget_s
            try:
                report = replace(report, compaction=self._compactor.step(table, deadline_s))
            except TryAgain as error:
                failed = error  # expiry needs no room, and may make some
        report = self._expire(table, report)
        report = replace(report, files_deleted=report.files_deleted + self._sweep_a_page(table))
        self._live.keep_only(table.metadata.snapshots)
        self._measure(table)
        if failed is not None:
            raise failed
        return report

    def _expire(self, table: Table, report: UpkeepReport) -> UpkeepReport:
        upkeep = self._settings.lake.upkeep
        lost: Exception | None = None
        leases = self._leases()
        for _ in range(COMMIT_ATTEMPTS):
            table.refresh()
            now = datetime.fromtimestamp(self._clock.now_us() / 1_000_000, UTC)
            due = upkeep.compact and self._compactor.is_due(table)
            plan = make_plan(table.metadata, upkeep, now, leases, compaction_due=due)
            if plan.is_empty:
                return report
            going = set(plan.expire)
            named = self._names(table, [one for one in table.metadata.snapshots if one.snapshot_id in going])
            self._faults("expiry")
            try:
                _Change(table, plan).commit()
            except (CommitFailedException, ValueError) as error:
                lost = error  # the writer was faster, or another upkeep (pyiceberg: a snapshot does not exist)
                continue
            self._faults("expired")
            metrics.SNAPSHOTS_EXPIRED.labels(self._name).inc(len(going))
            still = self._names(table)
            unnamed = [(kind, place) for place, kind in named.items() if place not in still]
            deleted = self._delete(table, unnamed, "mid_delete")
            log.info("upkeep", table=self._name, tagged=plan.tag, expired=len(going), files_deleted=deleted)
            return replace(report, tagged=plan.tag, snapshots_expired=len(going), files_deleted=deleted)
        raise CatalogUnavailable(f"upkeep of {self._name}: lost {COMMIT_ATTEMPTS} races in a row: {lost}")

    def _names(self, table: Table, snapshots: Collection[Snapshot] | None = None) -> dict[str, str]:
        """Return location -> kind of what snapshots (None: all) name: manifest lists, manifests, ledger files."""
        found: dict[str, str] = {}
        for snapshot in table.metadata.snapshots if snapshots is None else snapshots:
            found[snapshot.manifest_list] = "manifest"
            for manifest in self._live.manifests(table.io, snapshot):
                found[manifest.manifest_path] = "manifest"
            ledger = snapshot.summary.additional_properties.get(LEDGER_KEY) if snapshot.summary else None
            if ledger is not None:
                found[ledger] = "ledger"
        return found

    def _delete(self, table: Table, dead: Iterable[tuple[str, str]], point: str) -> int:
        """Delete what nothing names. A kill in between leaves files to the sweep."""
        count = 0
        for kind, location in dead:
            self._faults(point)
            try:
                table.io.delete(location)
            except FileNotFoundError:
                continue  # another upkeep was faster
            metrics.ORPHANS_REMOVED.labels(self._name, kind).inc()
            count += 1
        return count

    def _sweep_a_page(self, table: Table) -> int:
        now_s = self._clock.monotonic_s()
        if self._sweep is None:
            if self._swept_s is not None and now_s - self._swept_s < SWEEP_INTERVAL_S:
                return 0
            self._swept_s = now_s
            self._sweep = Sweep(table, self._names(table), self._live.paths_of_all(table))
        dead = self._sweep.page()
        if not self._sweep.still_holds(table.refresh()):
            self._sweep = self._swept_s = None
            return 0
        if self._sweep.done:
            self._sweep = None
        return self._delete(table, dead, "mid_sweep")

    def _measure(self, table: Table) -> None:
        metrics.TABLE_SNAPSHOTS.labels(self._name).set(len(table.metadata.snapshots))
        size = len(table.io.new_input(table.metadata_location))
        metrics.TABLE_METADATA_BYTES.labels(self._name).set(size)

    def _look_at_the_disk(self) -> str | None:
        """Note how much room there is; return what a person should know of it."""
        warehouse = local_path(self._settings.lake.warehouse or str(self._layout.warehouse))
        places = {"data_dir": str(self._layout.root), "warehouse": warehouse}
        low = None
        for place, path in places.items():
            if path is None:
                continue
            there = next(folder for folder in (Path(path), *Path(path).absolute().parents) if folder.exists())
            free = shutil.disk_usage(there).free
            metrics.DISK_FREE_BYTES.labels(place).set(free)
            if free < LOW_BYTES:
                low = f"only {free // 1_048_576} MiB are left under {path}: make room, or storing will have to wait"
        return low


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
