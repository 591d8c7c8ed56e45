"""What a snapshot is made of: its data files with their bounds, read from the manifests once and kept in columns.

Manifests never change, so each is parsed once whatever the number of snapshots that hold it: after a commit only the
new one is read. The manifest list's own partition bounds tell which manifests a question needs at all.

Next in the flow: `plan.py` prunes and orders the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import DataFile, ManifestContent, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.types import DateType, PrimitiveType, StringType, TimestamptzType

from k2ray.errors import BadRequest, CatalogUnavailable, OperatorNeeded
from k2ray.lake.durable import AWAY, local_path
from k2ray.query.cache import OnceCache
from k2ray.query.heads import Heads
from k2ray.query.request import Selection

SNAPSHOTS_KEPT = 64
FILES_KEPT = 500_000
BOUND_LENGTH = 16  # Iceberg's own default for the bounds of strings

LOWEST = np.iinfo(np.int64).min
HIGHEST = np.iinfo(np.int64).max
_DAY_US = 86_400_000_000
_EXPIRED = (
    "its snapshot has expired, since the page before was asked for too long ago (api.cursor_lease_s); "
    "allowed: the same question without cursor"
)
_TOP = "\U0010ffff" * 4

Int64s = npt.NDArray[np.int64]
Strings = npt.NDArray[np.object_]


@dataclass(frozen=True)
class FileList:
    """Data files as columns, one place a file; bounds are inclusive, and unbounded where a file has none.

    Attributes:
        paths: Local paths.
        exchanges: The exchange of each file's partition; empty if it has none.
        rows: Rows of each file.
        first_us: Lowest timestamp.
        last_us: Highest timestamp.
        first_symbol: Lower bound of the symbols.
        last_symbol: Upper bound of the symbols.
        spaces: The sequence space of all rows of each file; None where the bounds do not say.
    """

    paths: Strings
    exchanges: Strings
    rows: Int64s
    first_us: Int64s
    last_us: Int64s
    first_symbol: Strings
    last_symbol: Strings
    spaces: Strings

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, chosen: npt.NDArray[Any]) -> FileList:
        """Return the files that a mask or an index array names."""
        return FileList(*(column[chosen] for column in self.columns()))

    @staticmethod
    def concat(lists: Sequence[FileList]) -> FileList:
        """Return all files of several lists."""
        if not lists:
            return _columns_of([])
        return FileList(*(np.concatenate(columns) for columns in zip(*(one.columns() for one in lists), strict=True)))

    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """Return the attributes in order."""
        return (
            self.paths,
            self.exchanges,
            self.rows,
            self.first_us,
            self.last_us,
            self.first_symbol,
            self.last_symbol,
            self.spaces,
        )


@dataclass(frozen=True)
class _Manifest:
    file: ManifestFile
    first_day: int
    last_day: int
    first_exchange: str
    last_exchange: str


@dataclass(frozen=True)
class Pinned:
    """One snapshot of one table; everything that a question reads hangs on it.

    Attributes:
        table: The table's metadata when the snapshot was pinned.
        snapshot_id: The Iceberg snapshot; None for a table without any.
        manifests: Its data manifests.
        has_deletes: Whether it holds delete files.
    """

    table: Table
    snapshot_id: int | None
    manifests: tuple[_Manifest, ...]
    has_deletes: bool

    @property
    def key(self) -> str:
        """What cursors of this table are checked with."""
        return str(self.table.metadata.table_uuid)


class Snapshots:
    """Pins snapshots and knows their files. Safe to use from several threads."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._pinned: OnceCache[tuple[str, int], Pinned] = OnceCache(SNAPSHOTS_KEPT)
        self._files: OnceCache[str, FileList] = OnceCache(FILES_KEPT, weigh=len)

    def pin(self, table_name: str, snapshot_id: int | None = None) -> Pinned:
        """Pin the newest snapshot, or the one that a cursor names.

        Raises:
            BadRequest: Status 410: the snapshot has expired.
            CatalogUnavailable: Catalog or storage do not answer.
            TryAgain: The table does not exist yet.
        """
        table = self._heads.current(table_name)
        snapshot = table.current_snapshot() if snapshot_id is None else table.snapshot_by_id(snapshot_id)
        if snapshot is None:
            if snapshot_id is None:
                return Pinned(table, None, (), has_deletes=False)
            raise BadRequest("cursor", _EXPIRED, 410)
        key = (str(table.metadata.table_uuid), snapshot.snapshot_id)
        return self._pinned.get(key, lambda: _pin(table, snapshot))

    def head(self, table_name: str) -> Table:
        """Return a table's newest metadata.

        Raises:
            CatalogUnavailable: The catalog does not answer.
            TryAgain: The table does not exist yet.
        """
        return self._heads.current(table_name)

    def files(self, pinned: Pinned, selection: Selection) -> FileList:
        """Return the files of those manifests that may hold rows of the selection (a superset of the files needed).

        Raises:
            CatalogUnavailable: The storage does not answer.
        """
        return FileList.concat(
            [
                self._files.get(manifest.file.manifest_path, lambda m=manifest: _read(pinned.table, m.file))  # type: ignore[misc]
                for manifest in pinned.manifests
                if _may_hold(manifest, selection)
            ]
        )


def _may_hold(manifest: _Manifest, selection: Selection) -> bool:
    if selection.exchange is not None and not (manifest.first_exchange <= selection.exchange <= manifest.last_exchange):
        return False
    if selection.start_us is not None and manifest.last_day < selection.start_us // _DAY_US:
        return False
    return selection.end_us is None or manifest.first_day <= (selection.end_us - 1) // _DAY_US


def _pin(table: Table, snapshot: Snapshot) -> Pinned:
    try:
        manifests = snapshot.manifests(table.io)
    except AWAY as error:
        raise CatalogUnavailable(f"cannot read snapshot {snapshot.snapshot_id}: {error}") from error
    return Pinned(
        table,
        snapshot.snapshot_id,
        tuple(_bounds(table, one) for one in manifests if one.content == ManifestContent.DATA),
        has_deletes=any(one.content == ManifestContent.DELETES for one in manifests),
    )


def _bounds(table: Table, file: ManifestFile) -> _Manifest:
    """Return the days and exchanges of a manifest's files; unbounded where the list does not say."""
    days: tuple[int, int] = (LOWEST, HIGHEST)
    exchanges = ("", _TOP)
    spec = table.specs()[file.partition_spec_id]
    for field, summary in zip(spec.fields, file.partitions or [], strict=False):
        if summary.lower_bound is None or summary.upper_bound is None or summary.contains_null:
            continue
        name = table.schema().find_column_name(field.source_id)
        if name == "timestamp" and str(field.transform) == "day":
            low, high = (from_bytes(DateType(), bound) for bound in (summary.lower_bound, summary.upper_bound))
            days = (int(low), int(high))
        elif name == "exchange" and str(field.transform) == "identity":
            exchanges = (
                str(from_bytes(StringType(), summary.lower_bound)),
                str(from_bytes(StringType(), summary.upper_bound)),
            )
    return _Manifest(file, *days, *exchanges)


def _read(table: Table, manifest: ManifestFile) -> FileList:
    spec = table.specs()[manifest.partition_spec_id]
    names = [table.schema().find_column_name(field.source_id) for field in spec.fields]
    place = names.index("exchange") if "exchange" in names else None
    timestamp = table.schema().find_field("timestamp").field_id
    symbol = table.schema().find_field("symbol").field_id
    space = table.schema().find_field("sequence_space").field_id
    try:
        entries = manifest.fetch_manifest_entry(table.io)
    except AWAY as error:
        raise CatalogUnavailable(f"cannot read the manifest {manifest.manifest_path}: {error}") from error
    rows = []
    for entry in entries:
        file = entry.data_file
        first_us, last_us = _bound(file, timestamp, TimestamptzType(), LOWEST, HIGHEST)
        first_symbol, last_symbol = _bound(file, symbol, StringType(), "", _TOP)
        exchange = "" if place is None else (file.partition[place] or "")
        first_space, last_space = _bound(file, space, StringType(), "", _TOP)
        # Longer bounds may be cut; nulls have none.
        is_one = first_space == last_space and len(first_space) < BOUND_LENGTH and not _nulls(file, space)
        bounds = (first_us, last_us, first_symbol, last_symbol, first_space if is_one else None)
        rows.append((_local(file), exchange, file.record_count, *bounds))
    return _columns_of(rows)


def _bound(file: DataFile, field_id: int, kind: PrimitiveType, lowest: Any, highest: Any) -> tuple[Any, Any]:
    low = (file.lower_bounds or {}).get(field_id)
    high = (file.upper_bounds or {}).get(field_id)
    return (
        lowest if low is None else from_bytes(kind, low),
        highest if high is None else from_bytes(kind, high),
    )


def _nulls(file: DataFile, field_id: int) -> int:
    return int((file.null_value_counts or {}).get(field_id, 1))


def _local(file: DataFile) -> str:
    path = local_path(file.file_path)
    if path is None:
        raise OperatorNeeded(f"{file.file_path} is not a local file: queries read local warehouses only")
    return path


def _columns_of(rows: list[tuple[str, str, int, int, int, str, str, str | None]]) -> FileList:
    columns = list(zip(*rows, strict=True)) or [()] * 8
    kinds = (object, object, np.int64, np.int64, np.int64, object, object, object)
    return FileList(*(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))
