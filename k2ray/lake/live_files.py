"""What the newest snapshot is made of, as upkeep needs it: each manifest is parsed once, whoever asks.

Manifests never change, so after a commit only the new ones are read. Only a few plain values of each file are kept: a
table with a hundred thousand files must not fill upkeep's memory.

Next in the flow: `compaction_plan.py` chooses among the files, `sweep.py` spares them.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyiceberg.conversions import from_bytes
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile, ManifestContent, ManifestEntryStatus, ManifestFile, read_manifest_list
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.types import TimestamptzType

from k2ray.lake.compaction_plan import LiveFile

_UNKNOWN_US = 2**62
"""Time of a file without bounds: its hour never closes, so it is left alone."""


class LiveFiles:
    """Reads manifest lists and manifests, and remembers them until `forget`."""

    def __init__(self) -> None:
        self._lists: dict[int, tuple[ManifestFile, ...]] = {}
        self._files: dict[str, tuple[LiveFile, ...]] = {}

    def manifests(self, io: FileIO, snapshot: Snapshot) -> tuple[ManifestFile, ...]:
        """Return a snapshot's manifests."""
        if snapshot.snapshot_id not in self._lists:
            self._lists[snapshot.snapshot_id] = tuple(read_manifest_list(io.new_input(snapshot.manifest_list)))
        return self._lists[snapshot.snapshot_id]

    def of(self, table: Table, snapshot: Snapshot) -> list[LiveFile]:
        """Return the data files that a reader of the snapshot opens."""
        found: list[LiveFile] = []
        for manifest in self.manifests(table.io, snapshot):
            if manifest.content == ManifestContent.DATA:
                found += self._read(table, manifest)
        return found

    def has_deletes(self, io: FileIO, snapshot: Snapshot) -> bool:
        """Return whether a snapshot holds delete files (somebody else's: k2ray writes none)."""
        return any(manifest.content != ManifestContent.DATA for manifest in self.manifests(io, snapshot))

    def paths_of_all(self, table: Table) -> set[str]:
        """Return the locations of all data files that a reader of any retained snapshot opens."""
        manifests = {
            manifest.manifest_path: manifest
            for snapshot in table.metadata.snapshots
            for manifest in self.manifests(table.io, snapshot)
        }
        return {file.path for manifest in manifests.values() for file in self._read(table, manifest)}

    def keep_only(self, snapshots: Iterable[Snapshot]) -> None:
        """Forget what none of the snapshots names."""
        kept = {snapshot.snapshot_id for snapshot in snapshots}
        self._lists = {number: listed for number, listed in self._lists.items() if number in kept}
        named = {manifest.manifest_path for listed in self._lists.values() for manifest in listed}
        self._files = {path: files for path, files in self._files.items() if path in named}

    def _read(self, table: Table, manifest: ManifestFile) -> tuple[LiveFile, ...]:
        if manifest.manifest_path not in self._files:
            timestamp = table.schema().find_field("timestamp").field_id
            self._files[manifest.manifest_path] = tuple(
                _live_file(entry.data_file, entry.snapshot_id, manifest.manifest_path, timestamp)
                for entry in manifest.fetch_manifest_entry(table.io)
                if entry.status != ManifestEntryStatus.DELETED
            )
        return self._files[manifest.manifest_path]


def _live_file(file: DataFile, added_in: int | None, manifest: str, timestamp: int) -> LiveFile:
    first, last = (file.lower_bounds or {}).get(timestamp), (file.upper_bounds or {}).get(timestamp)
    partition = [file.partition[place] for place in range(len(file.partition))]
    return LiveFile(
        path=file.file_path,
        day=int(partition[0]) if len(partition) == 2 and partition[0] is not None else _UNKNOWN_US,
        exchange=str(partition[1] or "") if len(partition) == 2 else "",
        rows=file.record_count,
        bytes=file.file_size_in_bytes,
        first_us=_UNKNOWN_US if first is None else int(from_bytes(TimestamptzType(), first)),
        last_us=_UNKNOWN_US if last is None else int(from_bytes(TimestamptzType(), last)),
        added_in=added_in,
        manifest=manifest,
    )
