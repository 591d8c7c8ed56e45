"""A snapshot that changes files and no row: small ones out, the ones they became in. An Iceberg `replace`.

Every attempt, in the very metadata that it builds on:
- carries on that head's progress key as it is: offsets, ledger, ids. What was planned at offset 300 and lands over an
  append of 400 says 400. So the writer's fence sees nothing move, and an append that loses the compare-and-swap to it
  simply lands at its next attempt, some ten milliseconds later;
- demands that all files to be replaced are still there. If an append wins, it tries again over it; if a delete, another
  compaction or a rollback took one of them away, it gives way;
- demands that its new files are young: the sweep removes unnamed ones of a killed compaction after `MARGIN_US`, so
  one that slept longer (a suspended laptop) must not land them.

Entries that stay keep their sequence numbers. A table with delete files (not ours) is left alone: a rewritten row would
escape a delete that came before. Why private names of pyiceberg: see `commit.py`.

Next in the flow: `upkeep.py` expires the snapshots that name the small files, `sweep.py` removes those.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyiceberg.exceptions import CommitFailedException, ValidationException
from pyiceberg.manifest import DataFile, ManifestContent, ManifestEntry, ManifestEntryStatus, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, Summary
from pyiceberg.table.update import UpdatesAndRequirements
from pyiceberg.typedef import EMPTY_DICT

from k2ray.clock import Clock
from k2ray.errors import K2rayError, OperatorNeeded
from k2ray.lake.commit import Faults, FencedSnapshot
from k2ray.lake.durable import AWAY, unavailable
from k2ray.lake.progress import committed_progress
from k2ray.lake.sweep import MARGIN_US
from k2ray.logs import get_logger

log = get_logger(__name__)


class GaveWay(K2rayError):
    """Somebody else's commit won, or there is no time left: drop the new files, look at the table anew."""


class FencedReplace(FencedSnapshot):
    """A replace whose every attempt carries on the key of what it is built on.

    Args:
        table: Current.
        replaced: Locations of the small files.
        added: What they became.
        written_us: When the first of those was begun, wall time.
        clock: Time.
        faults: Called at `compaction_commit` in each attempt.
    """

    def __init__(
        self,
        table: Table,
        replaced: frozenset[str],
        added: Sequence[DataFile],
        written_us: int,
        clock: Clock,
        faults: Faults,
    ) -> None:
        self._replaced = replaced
        self._written_us = written_us
        self._clock = clock
        self._faults = faults
        self._kept: list[ManifestFile] = []
        self._gone: list[ManifestEntry] = []
        self._rewritten: dict[str, tuple[ManifestFile | None, list[ManifestEntry]]] = {}
        super().__init__(Operation.REPLACE, table, added)

    def _commit(self) -> UpdatesAndRequirements:
        metadata = self._transaction.table_metadata
        progress = committed_progress(metadata)
        if progress is None:
            raise OperatorNeeded("no snapshot of the table carries a progress key")
        self._split(metadata)
        self.snapshot_properties = progress.to_summary()
        self._check_added()
        result = super()._commit()
        self._faults("compaction_commit")
        return result

    def _split(self, metadata: TableMetadata) -> None:
        """Sort the head's manifests into what stays and what goes; each is rewritten once, whatever the attempts."""
        head = metadata.snapshot_by_id(self._parent_snapshot_id) if self._parent_snapshot_id is not None else None
        self._kept, self._gone = [], []
        for manifest in head.manifests(self._io) if head is not None else ():
            if manifest.content != ManifestContent.DATA:
                raise GaveWay("the table has delete files by now")
            if manifest.manifest_path not in self._rewritten:
                self._rewritten[manifest.manifest_path] = self._without_replaced(manifest)
            kept, gone = self._rewritten[manifest.manifest_path]
            self._kept += [kept] if kept is not None else []
            self._gone += gone
        missing = self._replaced - {entry.data_file.file_path for entry in self._gone}
        if missing:
            raise GaveWay(f"{len(missing)} of {len(self._replaced)} files were replaced or deleted meanwhile")
        self._deleted_data_files = {entry.data_file for entry in self._gone}

    def _without_replaced(self, manifest: ManifestFile) -> tuple[ManifestFile | None, list[ManifestEntry]]:
        entries = manifest.fetch_manifest_entry(self._io)
        gone = [entry for entry in entries if entry.data_file.file_path in self._replaced]
        if not gone:
            return (manifest if manifest.has_added_files() or manifest.has_existing_files() else None), []
        stays = [entry for entry in entries if entry.data_file.file_path not in self._replaced]
        kept = None
        if stays:
            with self.new_manifest_writer(self.spec(manifest.partition_spec_id)) as writer:
                for entry in stays:
                    writer.add_entry(_with_status(entry, ManifestEntryStatus.EXISTING, entry.snapshot_id))
            kept = writer.to_manifest_file()
        return kept, [_with_status(entry, ManifestEntryStatus.DELETED, self._snapshot_id) for entry in gone]

    def _check_added(self) -> None:
        """Refuse to change the number of rows, or to name files that the sweep may be about to remove."""
        before = sum(entry.data_file.record_count for entry in self._gone)
        after = sum(file.record_count for file in self._added_data_files)
        if before != after:
            raise AssertionError(f"a compaction of {before} rows would make them {after}")
        # By then the sweep leaves it alone for as long again, so no attempt can be overtaken between here and its end.
        if self._clock.now_us() - self._written_us > MARGIN_US // 2:
            raise GaveWay("it took too long: its files may be taken for a dead one's")
        for file in self._added_data_files:
            if not self._io.new_input(file.file_path).exists():
                raise GaveWay(f"{file.file_path} is gone: it was taken for a dead compaction's")

    def _existing_manifests(self) -> list[ManifestFile]:
        return self._kept

    def _deleted_entries(self) -> list[ManifestEntry]:
        return self._gone

    def _summary(self, snapshot_properties: dict[str, str] = EMPTY_DICT) -> Summary:
        """Let pyiceberg add up what an overwrite would change, and say what it is: it knows no replace."""
        self._operation = Operation.OVERWRITE
        try:
            summary = super()._summary(snapshot_properties)
        finally:
            self._operation = Operation.REPLACE
        return Summary(operation=Operation.REPLACE, **summary.additional_properties)


def commit_replace(
    table: Table, replaced: frozenset[str], added: Sequence[DataFile], written_us: int, clock: Clock, faults: Faults
) -> int:
    """Replace files and return the snapshot; `table` is current afterwards.

    Raises:
        GaveWay: The table has moved on in a way that this cannot be built on, or appends won too often.
        CatalogUnavailable: Catalog or storage away. Whether it landed is unknown, and need not be known: looking at the
            table anew tells what is left to do.
        OperatorNeeded: The table has no progress key.
    """
    try:
        attempt = FencedReplace(table, replaced, added, written_us, clock, faults)
        attempt.land()
    except (CommitFailedException, ValidationException) as error:
        # Validation: it slept so long that the snapshot which it began on has expired.
        _refresh(table)
        if table.metadata.snapshot_by_id(attempt.snapshot_id) is None:
            raise GaveWay(f"others won every attempt: {error}") from error
    except AWAY as error:
        raise unavailable(f"{table.name()}: a compaction did not land", error) from error
    return attempt.snapshot_id


def _refresh(table: Table) -> None:
    try:
        table.refresh()
    except AWAY as error:
        raise unavailable(f"{table.name()}: cannot look whether a compaction landed", error) from error


def _with_status(entry: ManifestEntry, status: ManifestEntryStatus, snapshot_id: int | None) -> ManifestEntry:
    return ManifestEntry.from_args(
        status=status,
        snapshot_id=snapshot_id,
        sequence_number=entry.sequence_number,
        file_sequence_number=entry.file_sequence_number,
        data_file=entry.data_file,
    )
