"""16. Answers: DuckDB over the pinned snapshot's pruned files, filters before the limit, decimals exact.

A question that fails anywhere fails as a whole: there are no partial answers, and an empty one means that the snapshot
holds no such row.

Not here: how bars are made (`bars.py`), formats and HTTP (serve/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog

from k2ray.clock import Clock, SystemClock
from k2ray.errors import BadRequest, CatalogUnavailable, OperatorNeeded, TryAgain
from k2ray.lake.catalog import catalog_properties
from k2ray.lake.durable import local_path
from k2ray.layout import DataDir
from k2ray.model import GAPS, table_schema
from k2ray.query.bars import BAR_KEY, BARS, bars_of, covering
from k2ray.query.completeness import Completeness
from k2ray.query.cursor import Cursor, decode_cursor, encode_cursor
from k2ray.query.database import Database
from k2ray.query.files import Pinned, Snapshots
from k2ray.query.gaps import GAP_ROWS, GapsRequest, read_gaps
from k2ray.query.heads import Heads
from k2ray.query.listing import Listing
from k2ray.query.plan import Slice, prune, slices
from k2ray.query.request import BarsRequest, RowsRequest, Selection
from k2ray.query.scan import NO_SEQUENCE, fetch_source, sequence_sql, source_sql, where_sql
from k2ray.settings import Settings

# Bars need all rows of their time anyway: small first slices would only repeat the work of starting.
FIRST_BARS_ROWS = 4_000_000
ID_COLUMN = {"trades": "trade_id", "quotes": "quote_id"}

Lease = Callable[[str, int], object]
"""Told the table and snapshot id of every page that has a cursor or was asked for by one; returns at once."""


def no_lease(_table: str, _snapshot_id: int) -> None:
    """Lease nothing: for those who ask one question and are gone."""


@dataclass(frozen=True)
class Answer:
    """Rows, the snapshot that they are from, and where the next page begins.

    Attributes:
        rows: One Arrow table in the order that was asked for.
        next_cursor: None on the last page.
        snapshot_id: The Iceberg snapshot; None for a table that never had one.
        files: How many data files were read.
    """

    rows: pa.Table
    next_cursor: str | None
    snapshot_id: int | None
    files: int


class QueryEngine:
    """Answers questions about one lakehouse. Blocking; safe to use from several threads.

    Args:
        catalog: Opened with `open_catalog`.
        settings: Namespace and the API's limits.
        layout: Where the default warehouse is.
        clock: For cache ages.
        lease: Keeps snapshots from being expired while somebody pages through them.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        layout: DataDir,
        clock: Clock | None = None,
        lease: Lease = no_lease,
    ) -> None:
        warehouse = local_path(catalog_properties(settings, layout)["warehouse"])
        if warehouse is None:
            raise OperatorNeeded("lake.warehouse: queries read local warehouses only")
        self._lease = lease
        self.snapshots = Snapshots(Heads(catalog, settings, clock or SystemClock()))
        self.database = Database([warehouse], settings.api.memory_bytes, settings.api.threads, settings.api.timeout_s)
        self._listing = Listing(self.database, self.snapshots)
        self.completeness = Completeness(self.snapshots, self.database)

    def rows(self, request: RowsRequest) -> Answer:
        """Answer a question about rows.

        Raises:
            BadRequest: The cursor is not genuine (400) or has expired (410).
            QueryTooLarge: Too long or too much memory; ask for less.
            TryAgain: Catalog or storage do not answer, or the table does not exist yet.
        """
        table_name = request.selection.table
        pinned, cursor = self._pin(table_name, request.cursor, request.digest())
        selection = request.selection if cursor is None else _beyond(request.selection, request.order, cursor)
        key = _key_columns(table_name)
        names = list(dict.fromkeys((*request.fields, *key)))
        parts: list[pa.Table] = []
        wanted = request.limit + 1
        files = 0
        for part in slices(prune(self.snapshots.files(pinned, selection), selection), request.order):
            statement, values = _rows_sql(names, selection, request.order, key, part, wanted, cursor)
            found = fetch_source(self.database, pinned, statement, values, part)
            files += len(part.paths)
            parts.append(found)
            wanted -= found.num_rows
            if wanted <= 0:
                break
        rows = pa.concat_tables(parts) if parts else _empty(table_name, names)
        next_cursor = None
        if rows.num_rows > request.limit:
            rows = rows.slice(0, request.limit)
            next_cursor = self._next(table_name, pinned, _position(rows, key), request.digest())
        return Answer(rows.select(list(request.fields)), next_cursor, pinned.snapshot_id, files)

    def bars(self, request: BarsRequest) -> Answer:
        """Answer a question about bars.

        Raises:
            BadRequest: The cursor is not genuine (400) or has expired (410).
            QueryTooLarge: Too long or too much memory; ask for less.
            TryAgain: Catalog or storage do not answer, or the table does not exist yet.
        """
        table_name = request.selection.table
        pinned, cursor = self._pin(table_name, request.cursor, request.digest())
        selection = covering(request.selection, request.interval_us)
        if cursor is not None:
            selection = covering(_beyond(selection, request.order, cursor), request.interval_us, inner=False)
        parts: list[pa.Table] = []
        wanted = request.limit + 1
        files = 0
        pruned = prune(self.snapshots.files(pinned, selection), selection)
        for part in slices(pruned, request.order, FIRST_BARS_ROWS, request.interval_us):
            found = bars_of(self.database, pinned, request, selection, part, wanted, cursor)
            files += len(part.paths)
            parts.append(found)
            wanted -= found.num_rows
            if wanted <= 0:
                break
        rows = pa.concat_tables(parts) if parts else BARS.empty_table()
        next_cursor = None
        if rows.num_rows > request.limit:
            rows = rows.slice(0, request.limit)
            next_cursor = self._next(table_name, pinned, _position(rows, BAR_KEY), request.digest())
        return Answer(rows, next_cursor, pinned.snapshot_id, files)

    def symbols(self, table_name: str, exchange: str | None) -> Answer:
        """List the instruments of a table; see `listing.py`."""
        rows, snapshot_id = self._listing.symbols(table_name, exchange)
        return Answer(rows, None, snapshot_id, 0)

    def list_snapshots(self, table_name: str, limit: int) -> Answer:
        """List a table's snapshots, the newest first; see `listing.py`."""
        rows, snapshot_id = self._listing.snapshots(table_name, limit)
        return Answer(rows, None, snapshot_id, 0)

    def gaps(self, request: GapsRequest) -> Answer:
        """List what became of gaps; nothing as long as there was none.

        Raises:
            CatalogUnavailable: Catalog or storage do not answer.
        """
        try:
            table = self.snapshots.head(GAPS)
        except CatalogUnavailable:
            raise
        except TryAgain:
            return Answer(GAP_ROWS.empty_table(), None, None, 0)
        return Answer(read_gaps(table, request), None, table.metadata.current_snapshot_id, 0)

    def check(self, table_names: Iterable[str]) -> None:
        """Return if every table can be read.

        Raises:
            TryAgain: Catalog or storage do not answer, or a table does not exist yet.
        """
        for name in table_names:
            self.snapshots.pin(name)

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    def _pin(self, table_name: str, token: str | None, digest: bytes) -> tuple[Pinned, Cursor | None]:
        """Pin the snapshot that a cursor names, or the newest one.

        Raises:
            BadRequest: The cursor is not genuine (400) or has expired (410).
        """
        pinned = self.snapshots.pin(table_name)
        if token is None:
            return pinned, None
        cursor = decode_cursor(token, digest, pinned.key)
        if cursor.snapshot_id != pinned.snapshot_id:
            pinned = self.snapshots.pin(table_name, cursor.snapshot_id)
        self._lease(table_name, cursor.snapshot_id)  # now, so that it stays while it is read
        return pinned, cursor

    def _next(self, table_name: str, pinned: Pinned, position: tuple[int | str, ...], digest: bytes) -> str:
        """Return the cursor of the next page, and lease the snapshot for it."""
        assert pinned.snapshot_id is not None
        self._lease(table_name, pinned.snapshot_id)
        return encode_cursor(Cursor(pinned.snapshot_id, position), digest, pinned.key)


def _rows_sql(
    names: list[str],
    selection: Selection,
    order: str,
    key: tuple[str, ...],
    part: Slice,
    limit: int,
    cursor: Cursor | None,
) -> tuple[str, dict[str, Any]]:
    conditions, values = where_sql(selection, part)
    if cursor is not None:
        sign = ">" if order == "asc" else "<"
        mine = ", ".join(_key_sql(name) for name in key)
        theirs = ", ".join(
            f"make_timestamptz($after_{place})" if name == "timestamp" else f"$after_{place}"
            for place, name in enumerate(key)
        )
        conditions.append(f"({mine}) {sign} ({theirs})")
        values.update({f"after_{place}": value for place, value in enumerate(cursor.position)})
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    direction = "ASC" if order == "asc" else "DESC"
    ordering = ", ".join(f"{_key_sql(name)} {direction}" for name in key)
    columns = ", ".join(f'"{name}"' for name in names)
    values["limit"] = limit
    return f"SELECT {columns} FROM {source_sql()}{where} ORDER BY {ordering} LIMIT $limit", values


def _key_columns(table_name: str) -> tuple[str, ...]:
    """Return the total order: time, instrument, then the identity within it."""
    return ("timestamp", "exchange", "symbol", "sequence_space", "source_sequence", ID_COLUMN[table_name])


def _key_sql(name: str) -> str:
    return sequence_sql() if name == "source_sequence" else name


def _beyond(selection: Selection, order: str, cursor: Cursor) -> Selection:
    """Narrow a selection's time to what may still come, so that files are pruned by the cursor too."""
    reached = cursor.position[0]
    if not isinstance(reached, int):
        raise BadRequest("cursor", "is damaged")
    if order == "asc":
        start = reached if selection.start_us is None else max(reached, selection.start_us)
        return Selection(
            selection.table, selection.exchange, selection.symbols, start, selection.end_us, selection.space
        )
    end = reached + 1 if selection.end_us is None else min(reached + 1, selection.end_us)
    return Selection(selection.table, selection.exchange, selection.symbols, selection.start_us, end, selection.space)


def _position(rows: pa.Table, key: tuple[str, ...]) -> tuple[int | str, ...]:
    last = rows.slice(rows.num_rows - 1)
    values: list[int | str] = []
    for name in key:
        scalar = last[name][0]
        if name == "timestamp":
            values.append(scalar.value)
        elif name == "source_sequence":
            values.append(scalar.as_py() if scalar.is_valid else NO_SEQUENCE)
        else:
            values.append(scalar.as_py())
    return tuple(values)


def _empty(table_name: str, names: list[str]) -> pa.Table:
    schema = table_schema(table_name)
    return pa.schema([schema.field(name) for name in names]).empty_table()
