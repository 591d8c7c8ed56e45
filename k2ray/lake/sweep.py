"""Files that no snapshot will ever name: what killed writers and lost attempts left behind.

Age alone proves nothing: a suspended laptop wakes with a three-day-old file about to be committed. So each kind has a
reason why it can never be named any more, and only on top of that a margin for clocks that differ:

| kind | may go when no snapshot names it and |
|---|---|
| data file (its name says which offsets) | the committed offset has passed its start: the fence refuses it |
| ledger file | a newer snapshot moved the offsets: the fence refuses the batch it was written for |
| manifest, manifest list | main has moved since: the attempt that wrote it loses the compare-and-swap |
| metadata.json | the table was committed since, likewise |
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import pairwise

from pyarrow.fs import FileSelector, FileType
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import read_manifest_list
from pyiceberg.table import Table

from k2ray.lake.progress import ancestry, committed_progress, read_progress
from k2ray.lake.stage import Origin

SWEEP_INTERVAL_S = 3600.0
MARGIN_US = 3_600_000_000
"""Clocks of two machines, and a file's time against the catalog's, may differ by this much."""

_LEDGER = re.compile(r"k2ray-ledger-.*\.arrow$")
_MANIFEST = re.compile(r"(snap-.*|.*-m\d+)\.avro$")
_METADATA = re.compile(r"\d+-.*\.metadata\.json$")


def sweep(table: Table, named: Collection[str]) -> list[str]:
    """Return the locations of files that can never be named by a snapshot any more.

    Args:
        table: Just loaded.
        named: Manifest lists, manifests and ledger files of all its retained snapshots.
    """
    return [*_dead_metadata(table, named), *_dead_data(table, named)]


def _dead_metadata(table: Table, named: Collection[str]) -> Iterable[str]:
    metadata = table.metadata
    current = {table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    lineage = ancestry(metadata)
    limits = [
        (_LEDGER, _offsets_moved_us(table)),
        (_MANIFEST, lineage[0].timestamp_ms * 1000 if lineage else None),
        (_METADATA, metadata.last_updated_ms * 1000),
    ]
    for location, written_us in _files(table, "metadata"):
        if location in named or location in current:
            continue
        name = location.rsplit("/", 1)[-1]
        limit = next((limit for pattern, limit in limits if pattern.match(name)), None)
        if limit is not None and written_us < limit - MARGIN_US:
            yield location


def _dead_data(table: Table, named: Collection[str]) -> Iterable[str]:
    progress = committed_progress(table.metadata)
    if progress is None:
        return
    names = {topic_id: topic for topic, topic_id in progress.topics.items()}
    candidates = []
    for location, _ in _files(table, "data"):
        origin = Origin.of(location)
        topic = names.get(origin.topic_id) if origin else None
        if origin and topic and progress.offset((topic, origin.partition)).next > origin.start:
            candidates.append(location)
    if candidates:
        live = _data_files(table)
        yield from (location for location in candidates if location not in live)


def _data_files(table: Table) -> set[str]:
    """Return every data file that any retained snapshot names, each manifest read once."""
    manifests = {}
    for snapshot in table.metadata.snapshots:
        for manifest in read_manifest_list(table.io.new_input(snapshot.manifest_list)):
            manifests[manifest.manifest_path] = manifest
    return {
        entry.data_file.file_path
        for manifest in manifests.values()
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False)
    }


def _offsets_moved_us(table: Table) -> int | None:
    """Return when the committed offsets last moved; None if the retained snapshots do not say."""
    keyed = [(snapshot, read_progress(snapshot)) for snapshot in ancestry(table.metadata)]
    found = [(snapshot, progress) for snapshot, progress in keyed if progress is not None]
    for (newer, after), (_, before) in pairwise(found):
        if after.offsets != before.offsets:
            return newer.timestamp_ms * 1000
    return None


def _files(table: Table, folder: str) -> list[tuple[str, int]]:
    """Return location and time of writing (UTC microseconds) of every file below one of the table's folders."""
    io = table.io
    if not isinstance(io, PyArrowFileIO):
        return []
    root = f"{table.location().rstrip('/')}/{folder}"
    scheme, netloc, path = io.parse_location(root, io.properties)
    found = io.fs_by_scheme(scheme, netloc).get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    return [
        (root + info.path[len(path) :], (info.mtime_ns or 0) // 1000) for info in found if info.type == FileType.File
    ]
