"""Files that no snapshot will ever name: what killed writers, lost attempts and compactions left behind.

Age alone proves nothing: a suspended laptop wakes with a three-day-old file about to be committed. So each kind has a
reason why it can never be named any more, and only on top of that a margin for clocks that differ:

| kind | may go when no snapshot names it and |
|---|---|
| data file of a batch (its name says which offsets) | the committed offset has passed its start: the fence refuses it |
| compacted data file | main moved a margin after it was written: an attempt so old gives way, one under way loses |
| ledger file | a newer snapshot moved the offsets: the fence refuses the batch it was written for |
| manifest, manifest list | main has moved since: the attempt that wrote it loses the compare-and-swap |
| metadata.json | the table was committed since, likewise |

A small file that was compacted is a batch's file which no snapshot names any more.

One pass judges by the metadata of its beginning, and looks at a page of folders at a time: what could not be named then
cannot be named later either, so a pass may take as many looks as it needs. But for a rewind (the broker lost what it
had confirmed, and its offsets are written anew): a pass that began before one ends, and its last page is not deleted.

Next in the flow: `upkeep.py` deletes them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import pairwise

from pyarrow.fs import FileInfo, FileSelector, FileType
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from k2ray.lake.progress import ancestry, committed_progress, read_progress
from k2ray.lake.stage import Origin

SWEEP_INTERVAL_S = 3600.0
MARGIN_US = 3_600_000_000
"""Clocks of two machines, and a file's time against the catalog's, may differ by this much."""

PAGE_FILES = 20_000
"""After as many files a page ends with its folder: listing them takes about a second."""

COMPACTED_PREFIX = "k2ray-compacted-"

_LEDGER = re.compile(r"k2ray-ledger-.*\.arrow$")
_MANIFEST = re.compile(r"(snap-.*|.*-m\d+)\.avro$")
_METADATA = re.compile(r"\d+-.*\.metadata\.json$")


class Sweep:
    """One pass over a table's folders.

    Args:
        table: Just loaded.
        named: Manifest lists, manifests and ledger files of all its retained snapshots.
        live: Data files that a reader of any retained snapshot opens.

    Attributes:
        done: Whether the last page was taken.
    """

    def __init__(self, table: Table, named: Collection[str], live: Collection[str]) -> None:
        metadata = table.metadata
        self._live = live
        self._named = {*named, table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
        self._progress = committed_progress(metadata)
        self._topics = {id_: topic for topic, id_ in self._progress.topics.items()} if self._progress else {}
        lineage = ancestry(metadata)
        self._main_moved_us = lineage[0].timestamp_ms * 1000 if lineage else None
        self._limits = [
            ("ledger", _LEDGER, _offsets_moved_us(table)),
            ("manifest", _MANIFEST, self._main_moved_us),
            ("metadata", _METADATA, metadata.last_updated_ms * 1000),
        ]
        self.done = False
        self._pages = self._all_pages(table)

    def page(self) -> list[tuple[str, str]]:
        """Look at the next page; return (kind, location) of what can never be named."""
        return next(self._pages, [])

    def still_holds(self, table: Table) -> bool:
        """Tell whether the committed offsets only grew since the beginning.

        Args:
            table: Loaded after the page was taken: what a rewound writer stages later is not on that page.
        """
        now = committed_progress(table.metadata)
        if self._progress is None or now is None:
            return self._progress is now
        return now.topics == self._progress.topics and all(
            now.offset(key).next >= before.next for key, before in self._progress.offsets.items()
        )

    def _all_pages(self, table: Table) -> Iterator[list[tuple[str, str]]]:
        dead, seen = [], 0
        for location, written_us in _files(table, "metadata"):
            name = location.rsplit("/", 1)[-1]
            for kind, pattern, limit in self._limits:
                if pattern.match(name) and location not in self._named:
                    dead += [(kind, location)] if limit is not None and written_us < limit - MARGIN_US else []
                    break
            seen += 1
        for folder in _folders(table, "data"):
            if seen >= PAGE_FILES:
                yield dead
                dead, seen = [], 0
            for location, written_us in _files(table, folder):
                seen += 1
                if location not in self._live and self._is_dead_data(location, written_us):
                    dead.append(("data", location))
        self.done = True
        yield dead

    def _is_dead_data(self, location: str, written_us: int) -> bool:
        if location.rsplit("/", 1)[-1].startswith(COMPACTED_PREFIX):
            return self._main_moved_us is not None and written_us < self._main_moved_us - MARGIN_US
        origin = Origin.of(location)
        topic = self._topics.get(origin.topic_id) if origin else None
        if self._progress is None or origin is None or topic is None:
            return False
        return self._progress.offset((topic, origin.partition)).next > origin.start


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
    return [
        (location, (info.mtime_ns or 0) // 1000)
        for location, info in _entries(table, folder, recursive=True)
        if info.type == FileType.File
    ]


def _folders(table: Table, folder: str) -> list[str]:
    """Return the folders in one of the table's, newest day first."""
    found = [info for _, info in _entries(table, folder, recursive=False) if info.type == FileType.Directory]
    return sorted((f"{folder}/{info.base_name}" for info in found), reverse=True)


def _entries(table: Table, folder: str, *, recursive: bool) -> list[tuple[str, FileInfo]]:
    io = table.io
    if not isinstance(io, PyArrowFileIO):
        return []
    root = f"{table.location().rstrip('/')}/{folder}"
    scheme, netloc, path = io.parse_location(root, io.properties)
    found = io.fs_by_scheme(scheme, netloc).get_file_info(FileSelector(path, recursive=recursive, allow_not_found=True))
    return [(root + info.path[len(path) :], info) for info in found]
