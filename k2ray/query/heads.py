"""The newest metadata of each table, read cheaply: parsed again only when the catalog names another metadata file.

A SQL catalog is asked for that name on every request (a primary-key read); any other catalog at most once in
`max_age_s`, which bounds how stale an answer may be.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.table import Table
from sqlalchemy import select

from k2ray.clock import Clock
from k2ray.errors import CatalogUnavailable, TableMissing
from k2ray.lake.catalog import load_table, table_identifier
from k2ray.lake.durable import AWAY
from k2ray.settings import Settings

MAX_AGE_S = 1.0


@dataclass
class _Held:
    table: Table
    seen_s: float


class Heads:
    """The tables' heads. Safe to use from several threads.

    Args:
        catalog: Where the tables are.
        settings: Names the namespace.
        clock: For the age limit.
        max_age_s: How old a head may be with a catalog that cannot be asked cheaply.
    """

    def __init__(self, catalog: Catalog, settings: Settings, clock: Clock, max_age_s: float = MAX_AGE_S) -> None:
        self._catalog = catalog
        self._settings = settings
        self._clock = clock
        self._max_age_s = max_age_s
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._held: dict[str, _Held] = {}

    def current(self, table_name: str) -> Table:
        """Return a table's newest metadata.

        Raises:
            CatalogUnavailable: The catalog does not answer.
            TableMissing: The table does not exist yet.
        """
        with self._lock:
            lock = self._locks.setdefault(table_name, threading.Lock())
        with lock:
            held = self._held.get(table_name)
            if held is not None and self._is_current(table_name, held):
                return held.table
            table = load_table(self._catalog, self._settings, table_name)
            if table is None:
                self._held.pop(table_name, None)
                raise TableMissing(f"the table {table_name} does not exist yet")
            self._held[table_name] = _Held(table, self._clock.monotonic_s())
            return table

    def _is_current(self, table_name: str, held: _Held) -> bool:
        if not isinstance(self._catalog, SqlCatalog):
            return self._clock.monotonic_s() - held.seen_s < self._max_age_s
        namespace, name = table_identifier(self._settings, table_name)
        row = IcebergTables.__table__.c
        question = select(row.metadata_location).where(
            row.catalog_name == self._catalog.name, row.table_namespace == namespace, row.table_name == name
        )
        try:
            with self._catalog.engine.connect() as connection:
                location = connection.scalar(question)
        except AWAY as error:
            raise CatalogUnavailable(f"the catalog does not answer: {error}") from error
        return location == held.table.metadata_location
