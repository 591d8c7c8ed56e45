"""Open the Iceberg catalog and make tables ready: created, and with the genesis snapshot that carries the progress key.

The default catalog is SQLite below `data_dir` (WAL and a busy timeout, since writers, upkeep and queries are processes
of their own); `lake.catalog` can name any other that pyiceberg knows.

Creating and genesis are two commits, so a kill between them leaves a table without any snapshot; whoever comes next
gives it its genesis. Offsets start at 0, the earliest: a first commit that started at "latest" would lose for good
what was produced before it.

Next in the flow: `stage.py` writes the files, `commit.py` makes them a snapshot.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.table import Table
from sqlalchemy import event

from k2ray.errors import CatalogUnavailable
from k2ray.lake.commit import Faults, commit_genesis, no_faults
from k2ray.lake.durable import AWAY, IMPLEMENTATION, local_path, make_folders, unavailable
from k2ray.lake.progress import START, Progress, committed_progress
from k2ray.lake.schema import PROPERTIES, iceberg_schema, partition_spec, sort_order
from k2ray.layout import DataDir
from k2ray.settings import Settings

NAME = "k2ray"
BUSY_TIMEOUT_S = 30
OPEN_ATTEMPTS = 5
GENESIS_ATTEMPTS = 5


def open_catalog(settings: Settings, layout: DataDir) -> Catalog:
    """Open the catalog and make sure that the namespace exists. Each process opens its own.

    Raises:
        CatalogUnavailable: It does not answer; call again after a pause.
    """
    properties = catalog_properties(settings, layout)
    if properties["type"] == "sql" and properties["uri"].startswith("sqlite:///"):
        _prepare_sqlite(properties["uri"])
    for attempt in range(OPEN_ATTEMPTS):
        try:
            catalog = load_catalog(NAME, **properties)
            _harden_sqlite(catalog)
            with contextlib.suppress(NamespaceAlreadyExistsError):
                catalog.create_namespace_if_not_exists(settings.lake.namespace)
        except AWAY as error:
            # Two processes that create the catalog's tables at once: the loser finds them at its next attempt.
            if attempt == OPEN_ATTEMPTS - 1:
                raise unavailable("the catalog does not answer", error) from error
            time.sleep(0.05 * 2**attempt)
        else:
            return catalog
    raise AssertionError("unreachable")


def catalog_properties(settings: Settings, layout: DataDir) -> dict[str, str]:
    """Return what pyiceberg is given: defaults below `data_dir`, then `lake.catalog` as it is."""
    chosen = {key: str(value) for key, value in settings.lake.catalog.model_dump().items() if value is not None}
    warehouse = settings.lake.warehouse or str(layout.warehouse.resolve())
    path = local_path(warehouse)
    defaults = {"type": "sql", "warehouse": warehouse}
    if path is not None:
        # A `#` or `?` in a folder's name would end a URI's path.
        defaults["warehouse"] = path if set(path) & set("#?%") else f"file://{path}"
        defaults["py-io-impl"] = IMPLEMENTATION
    properties = {**defaults, **chosen}
    if properties["type"] == "sql":
        properties.setdefault("uri", f"sqlite:///{layout.catalog.resolve()}")
        properties.setdefault("pool_pre_ping", "true")
    return properties


def table_identifier(settings: Settings, table_name: str) -> tuple[str, str]:
    """Return the catalog's identifier of a table."""
    return settings.lake.namespace, table_name


def ensure_table(
    catalog: Catalog,
    settings: Settings,
    table_name: str,
    partitions: Mapping[str, int] | None = None,
    *,
    cluster: str | None = None,
    topics: Mapping[str, str] | None = None,
    faults: Faults = no_faults,
) -> Table:
    """Create the table with its genesis snapshot, or bring a half-made one to that state; else just load it.

    Args:
        catalog: From `open_catalog`.
        settings: For the namespace and how many metadata versions are kept.
        table_name: `trades`, `quotes` or `gaps`.
        partitions: Topic -> number of partitions; offsets 0 go into the key. Absent partitions start at 0 as well.
        cluster: Kafka's cluster id, where known.
        topics: Topic -> topic id, where known.
        faults: Called at `before_genesis` and `genesis`.

    Raises:
        OperatorNeeded: The table has snapshots and none carries a progress key.
        CatalogUnavailable: The catalog or the storage does not answer; call again after a pause.
    """
    table = load_table(catalog, settings, table_name) or create_table(catalog, settings, table_name)
    if committed_progress(table.metadata) is not None:
        return table
    offsets = {(topic, number): START for topic, count in (partitions or {}).items() for number in range(count)}
    genesis = Progress(offsets=offsets, cluster=cluster, topics=dict(topics or {}))
    for attempt in range(GENESIS_ATTEMPTS):
        try:
            commit_genesis(table, genesis, faults)
            table.refresh()
            return table
        except CatalogUnavailable:
            if attempt == GENESIS_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def load_table(catalog: Catalog, settings: Settings, table_name: str) -> Table | None:
    """Load a table's newest metadata; None if it was never created.

    Raises:
        CatalogUnavailable: The catalog or the storage does not answer; call again after a pause.
    """
    try:
        return catalog.load_table(table_identifier(settings, table_name))
    except NoSuchTableError:
        return None
    except AWAY as error:
        raise unavailable(f"cannot load {table_name}", error) from error


def create_table(catalog: Catalog, settings: Settings, table_name: str) -> Table:
    """Create a table without any snapshot, or load it if somebody else was faster.

    Raises:
        CatalogUnavailable: The catalog or the storage does not answer; call again after a pause.
    """
    schema = iceberg_schema(table_name)
    kept = str(settings.lake.upkeep.metadata_versions_kept)
    try:
        return catalog.create_table(
            table_identifier(settings, table_name),
            schema=schema,
            partition_spec=partition_spec(schema),
            sort_order=sort_order(schema),
            properties={**PROPERTIES, "write.metadata.previous-versions-max": kept},
        )
    except TableAlreadyExistsError:
        table = load_table(catalog, settings, table_name)
        if table is None:
            raise CatalogUnavailable(f"{table_name} was created and dropped at the same time") from None
        return table
    except AWAY as error:
        raise unavailable(f"cannot create {table_name}", error) from error


def _prepare_sqlite(uri: str) -> None:
    """Switch the database to WAL once, so that readers never wait for a writer."""
    path = uri.removeprefix("sqlite:///").split("?", 1)[0]
    try:
        make_folders(str(path).rsplit("/", 1)[0] or "/")
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    except (OSError, sqlite3.Error) as error:
        raise CatalogUnavailable(f"cannot open the catalog {path}: {error}") from error


def _harden_sqlite(catalog: Catalog) -> None:
    """Wait for locks instead of failing, and make every commit durable.

    Without FULL a power cut could roll the catalog back over more commits than old metadata files are kept.
    """
    if not isinstance(catalog, SqlCatalog) or catalog.engine.dialect.name != "sqlite":
        return

    def configure(connection: Any, _record: object) -> None:
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")
        connection.execute("PRAGMA synchronous=FULL")

    event.listen(catalog.engine, "connect", configure)
    catalog.engine.dispose()
