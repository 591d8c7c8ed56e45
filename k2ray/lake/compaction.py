"""Small files of closed hours become sorted ones of about 128 MiB, without anybody noticing.

For each job of the plan:
1. **Reads** its files as one sorted stream in bounded memory (`compaction_merge.py`), summing up a fingerprint of rows.
2. **Writes** one file, as `stage.py` writes them. No snapshot names it yet.
3. **Verifies**: reads the new file back. Unless rows and fingerprint are those that went in, it is refused, loudly, and
   the small files stay.
4. **Commits** a replace (`compaction_commit.py`): it lands over appends, and gives way to anything else.

A kill anywhere leaves either the small files or the new one in the table; what no snapshot names is swept later.
Replaced files stay until no retained snapshot (leased, tagged, or just young) names them, so running queries go on.

Next in the flow: `upkeep.py` calls it; `sweep.py` removes what was replaced.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.typedef import Record

from k2ray import metrics
from k2ray.clock import Clock
from k2ray.lake.commit import Faults, no_faults
from k2ray.lake.compaction_commit import GaveWay, commit_replace
from k2ray.lake.compaction_merge import CannotCompact, Columns, Merge, Source
from k2ray.lake.compaction_plan import HOUR_US, Job, LiveFile, is_small, plan_jobs
from k2ray.lake.durable import remove_quietly
from k2ray.lake.fingerprint import Fingerprint, fingerprint
from k2ray.lake.live_files import LiveFiles
from k2ray.lake.stage import file_columns, file_location, write_file
from k2ray.lake.sweep import COMPACTED_PREFIX
from k2ray.logs import get_logger
from k2ray.settings import Upkeep

log = get_logger(__name__)


@dataclass(frozen=True)
class CompactionReport:
    """What the compactions of one look did.

    Attributes:
        done: Jobs that landed.
        gave_way: Jobs that lost to another commit; they are planned anew.
        refused: Jobs whose files cannot be rewritten; they are not tried again by this process.
        files: Small files that were replaced.
        rows: Rows that were rewritten.
        left: Jobs that wait for the next look.
    """

    done: int = 0
    gave_way: int = 0
    refused: int = 0
    files: int = 0
    rows: int = 0
    left: int = 0


class Compactor:
    """Compacts one table.

    Args:
        table_name: `trades`, `quotes` or `gaps`.
        upkeep: Sizes and times.
        clock: Time.
        scratch: Folder for what does not fit into memory.
        live: What upkeep knows of the table's files.
        faults: Called at `compaction_planned`, `mid_parquet`, `compaction_written`, `compaction_verified`,
            `compaction_commit` and `compaction_done`, so that tests can kill there.
        alive: Called often; raises `GaveWay` to stop.
    """

    def __init__(
        self,
        table_name: str,
        upkeep: Upkeep,
        clock: Clock,
        scratch: Path,
        live: LiveFiles,
        faults: Faults = no_faults,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = table_name
        self._upkeep = upkeep
        self._clock = clock
        self._scratch = scratch
        self._live = live
        self._faults = faults
        self._alive = alive
        self._refused: dict[frozenset[str], str] = {}

    @property
    def trouble(self) -> str | None:
        """What was refused last and lies there still; None once it was compacted with others, expired or deleted."""
        return next(reversed(self._refused.values()), None)

    def plan(self, table: Table) -> list[Job]:
        """Return what is worth doing in the table's newest snapshot, and set the gauges of its files."""
        files = self._files(table)
        live = {file.path for file in files}
        self._refused = {paths: why for paths, why in self._refused.items() if paths <= live}
        small = [file for file in files if is_small(file, self._upkeep)]
        metrics.TABLE_FILES.labels(self._name).set(len(files))
        metrics.TABLE_SMALL_FILES.labels(self._name).set(len(small))
        now_us = self._clock.now_us()
        age_us = self._upkeep.compact_settle_s * 1_000_000
        # One that seems to come from the future (a clock was set back) is not waited for.
        fresh = {
            snapshot.snapshot_id
            for snapshot in table.metadata.snapshots
            if 0 <= now_us - snapshot.timestamp_ms * 1000 < age_us
        }
        return self._not_refused(plan_jobs(small, fresh, now_us, self._upkeep))

    def is_due(self, table: Table) -> bool:
        """Return whether files of past hours will be worth compacting as soon as they have settled."""
        now_us = self._clock.now_us()
        past = [file for file in self._files(table) if file.last_us // HOUR_US < now_us // HOUR_US]
        soon_us = now_us + int(self._upkeep.compact_settle_s * 1_000_000)
        return bool(self._not_refused(plan_jobs(past, set(), soon_us, self._upkeep)))

    def _files(self, table: Table) -> list[LiveFile]:
        head = table.current_snapshot()
        if head is None or self._live.has_deletes(table.io, head):
            return []
        return self._live.of(table, head)

    def _not_refused(self, jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if job.paths not in self._refused]

    def step(self, table: Table, deadline_s: float) -> CompactionReport:
        """Do what is worth doing; `table` is current afterwards.

        Args:
            table: Just loaded.
            deadline_s: Monotonic time after which no further job begins; the first one always does.

        Raises:
            CatalogUnavailable: Catalog or storage away; call again.
            OperatorNeeded: The table has no progress key.
        """
        report = CompactionReport()
        jobs = self.plan(table)
        self._faults("compaction_planned")
        for place, job in enumerate(jobs):
            if place and self._clock.monotonic_s() > deadline_s:
                return replace(report, left=len(jobs) - place)
            report = self._try(table, job, report)
            if report.gave_way:
                return replace(report, left=len(jobs) - place)
        return report

    def _try(self, table: Table, job: Job, report: CompactionReport) -> CompactionReport:
        started_s = self._clock.monotonic_s()
        try:
            added = self._run(table, job)
        except GaveWay as moved:
            metrics.COMPACTIONS.labels(self._name, "gave_way").inc()
            log.info("a compaction gave way", table=self._name, files=len(job.files), reason=str(moved))
            return replace(report, gave_way=report.gave_way + 1)
        except (CannotCompact, FileNotFoundError) as error:
            metrics.COMPACTIONS.labels(self._name, "refused").inc()
            log.error("compaction refused", table=self._name, files=len(job.files), reason=str(error))
            self._refused[job.paths] = f"compaction of {len(job.files)} files refused, they stay as they are: {error}"
            return replace(report, refused=report.refused + 1)
        metrics.COMPACTIONS.labels(self._name, "done").inc()
        metrics.COMPACTED_FILES.labels(self._name).inc(len(job.files))
        metrics.COMPACTED_ROWS.labels(self._name).inc(job.rows)
        metrics.COMPACTED_BYTES.labels(self._name).inc(added.file_size_in_bytes)
        log.info(
            "compacted",
            table=self._name,
            files=len(job.files),
            rows=job.rows,
            bytes_before=job.bytes,
            bytes_after=added.file_size_in_bytes,
            seconds=round(self._clock.monotonic_s() - started_s, 3),
        )
        return replace(report, done=report.done + 1, files=report.files + len(job.files), rows=report.rows + job.rows)

    def _run(self, table: Table, job: Job) -> DataFile:
        begun_us = self._clock.now_us()
        first = job.files[0]
        location = file_location(table, first.day, first.exchange, f"{COMPACTED_PREFIX}{uuid.uuid4().hex}.parquet")
        columns = Columns.of(table.schema(), self._name)
        sources = [lambda path=file.path: Source(table.io, path, columns) for file in job.files]
        merge = Merge(sources, columns.merged.names, self._scratch, self._alive)
        stored = file_columns(table.schema(), self._name)
        try:
            # 1. and 2.
            added = write_file(table, stored, merge.rows(), location, Record(first.day, first.exchange), self._faults)
            self._faults("compaction_written")
            # 3.
            self._verify(table, job, added, merge.seen, columns)
            self._faults("compaction_verified")
        except (CannotCompact, GaveWay, OSError):
            remove_quietly(table.io, location)
            raise
        # 4.
        commit_replace(table, job.paths, [added], begun_us, self._clock, self._faults)
        self._faults("compaction_done")
        return added

    def _verify(self, table: Table, job: Job, added: DataFile, seen: Fingerprint, columns: Columns) -> None:
        written = Fingerprint()
        source = Source(table.io, added.file_path, columns)
        try:
            for group in source.groups():
                self._alive()
                written += fingerprint(group, columns.merged.names)
        finally:
            source.close()
        if not (written == seen and written.rows == job.rows == added.record_count):
            raise CannotCompact(
                f"the rows that came out are not those that went in: manifests say {job.rows} rows, "
                f"read {seen}, written {written}"
            )
