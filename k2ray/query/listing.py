"""What is there to ask about: the instruments that a table holds, and its snapshots.

Data files never change and appends only add some, so the instruments' counts and times are kept and only new files are
read; a snapshot that lost files (compaction, a rollback) starts the count anew.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from k2ray.model import TIMESTAMP
from k2ray.query.database import Database
from k2ray.query.files import Pinned, Snapshots
from k2ray.query.plan import Slice
from k2ray.query.request import Selection
from k2ray.query.scan import fetch_source, source_sql

FILES_AT_ONCE = 500

SYMBOLS = pa.schema(
    [
        pa.field("exchange", pa.string(), nullable=False),
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("asset_class", pa.string(), nullable=False),
        pa.field("currency", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("first_timestamp", TIMESTAMP, nullable=False),
        pa.field("last_timestamp", TIMESTAMP, nullable=False),
    ]
)

SNAPSHOTS = pa.schema(
    [
        pa.field("snapshot_id", pa.string(), nullable=False),
        pa.field("parent_id", pa.string()),
        pa.field("committed_at", TIMESTAMP, nullable=False),
        pa.field("operation", pa.string()),
        pa.field("added_rows", pa.int64()),
        pa.field("total_rows", pa.int64()),
        pa.field("total_files", pa.int64()),
        pa.field("tags", pa.list_(pa.string()), nullable=False),
    ]
)
"""Snapshot ids are text: as JSON numbers they would lose digits in readers that know only doubles."""

_MERGE = """
    SELECT exchange, symbol, max(asset_class) AS asset_class, max(currency) AS currency, sum(rows)::BIGINT AS rows,
        min(first_timestamp) AS first_timestamp, max(last_timestamp) AS last_timestamp
    FROM found GROUP BY exchange, symbol ORDER BY exchange, symbol
"""


@dataclass(frozen=True)
class _Counted:
    snapshot_id: int | None
    paths: frozenset[str]
    rows: pa.Table


class Listing:
    """Lists instruments and snapshots. Safe to use from several threads."""

    def __init__(self, database: Database, snapshots: Snapshots) -> None:
        self._database = database
        self._snapshots = snapshots
        self._lock = threading.Lock()
        self._counted: dict[str, _Counted] = {}

    def symbols(self, table_name: str, exchange: str | None) -> tuple[pa.Table, int | None]:
        """Return `SYMBOLS` by exchange and symbol, every sequence space together, and the snapshot's id.

        Raises:
            TryAgain: Catalog or storage do not answer, or the table does not exist yet.
        """
        pinned = self._snapshots.pin(table_name)
        with self._lock:
            counted = self._counted.get(table_name)
            if counted is None or counted.snapshot_id != pinned.snapshot_id:
                counted = self._count(pinned, table_name, counted)
                self._counted[table_name] = counted
        rows = counted.rows
        if exchange is not None:
            rows = rows.filter(pa.compute.equal(rows["exchange"], exchange))
        return rows, pinned.snapshot_id

    def snapshots(self, table_name: str, limit: int) -> tuple[pa.Table, int | None]:
        """Return `SNAPSHOTS`, the newest first, and the current one's id.

        Raises:
            TryAgain: Catalog or storage do not answer, or the table does not exist yet.
        """
        metadata = self._snapshots.head(table_name).metadata
        tags: dict[int, list[str]] = {}
        for name, reference in metadata.refs.items():
            if reference.snapshot_ref_type == "tag":
                tags.setdefault(reference.snapshot_id, []).append(name)
        newest = sorted(metadata.snapshots, key=lambda one: (one.sequence_number or 0, one.timestamp_ms), reverse=True)
        rows = []
        for one in newest[:limit]:
            summary = one.summary
            facts = {} if summary is None else summary.additional_properties
            rows.append(
                {
                    "snapshot_id": str(one.snapshot_id),
                    "parent_id": None if one.parent_snapshot_id is None else str(one.parent_snapshot_id),
                    "committed_at": one.timestamp_ms * 1_000,
                    "operation": None if summary is None else summary.operation.value,
                    "added_rows": _number(facts.get("added-records")),
                    "total_rows": _number(facts.get("total-records")),
                    "total_files": _number(facts.get("total-data-files")),
                    "tags": sorted(tags.get(one.snapshot_id, [])),
                }
            )
        return pa.Table.from_pylist(rows, schema=SNAPSHOTS), metadata.current_snapshot_id

    def _count(self, pinned: Pinned, table_name: str, before: _Counted | None) -> _Counted:
        everything = Selection(table_name, None, (), None, None, None)
        paths = frozenset(self._snapshots.files(pinned, everything).paths)
        if before is None or not before.paths <= paths:
            before = _Counted(None, frozenset(), SYMBOLS.empty_table())
        added = sorted(paths - before.paths)
        found = [before.rows]
        statement = f"""
            SELECT exchange, symbol, max(asset_class) AS asset_class, max(currency) AS currency, count(*) AS rows,
                min(timestamp) AS first_timestamp, max(timestamp) AS last_timestamp
            FROM {source_sql()} GROUP BY exchange, symbol
        """
        for place in range(0, len(added), FILES_AT_ONCE):
            part = Slice(tuple(added[place : place + FILES_AT_ONCE]), None, None)
            found.append(fetch_source(self._database, pinned, statement, {}, part).cast(SYMBOLS))
        merged = self._database.fetch(_MERGE, {}, found=pa.concat_tables(found))
        return _Counted(pinned.snapshot_id, paths, merged.cast(SYMBOLS))


def _number(text: Any) -> int | None:
    return None if text is None else int(text)
