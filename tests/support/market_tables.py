"""Iceberg tables with chosen rows and files, for tests and benchmarks of queries: no Kafka, no writer, no ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog

from k2ray.lake.catalog import create_table, load_table, open_catalog
from k2ray.lake.stage import Origin, stage
from k2ray.layout import DataDir
from k2ray.model import REPEATED, SEQUENCE_FROM, WIRE_SCHEMAS
from k2ray.settings import Settings, load_settings

DAY_US = 86_400_000_000
START_US = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z."""


class MarketTables:
    """A SQLite catalog with the market's tables in a folder; each `append` is one snapshot.

    Args:
        folder: An empty folder.
        settings: More settings, for example `api={"memory_bytes": ...}`.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings: Settings = load_settings(arguments={"data_dir": str(folder), **settings}, environ={})
        self.layout = DataDir(self.settings.data_dir)
        self.catalog: Catalog = open_catalog(self.settings, self.layout)

    def create(self, *names: str) -> None:
        for name in names:
            create_table(self.catalog, self.settings, name)

    def append(self, name: str, rows: Sequence[dict[str, Any]] | pa.Table) -> int:
        """Append rows as one snapshot (one file a day and exchange) and return its id."""
        return self.append_files(name, [rows if isinstance(rows, pa.Table) else wire_table(name, rows)])

    def append_files(self, name: str, parts: Iterable[pa.Table]) -> int:
        """Append the files of each part, all in one snapshot, and return its id."""
        create_table(self.catalog, self.settings, name)
        table = load_table(self.catalog, self.settings, name)
        assert table is not None
        with table.transaction() as transaction, transaction.update_snapshot().merge_append() as append:
            for part in parts:
                for file in stage(table, name, part, Origin("tests", 0, 0, 0)):
                    append.append_data_file(file)
        snapshot = table.current_snapshot()
        assert snapshot is not None
        return snapshot.snapshot_id


def wire_table(name: str, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return rows as one table of the wire's schema without `sequence_from`."""
    fields = [field for field in WIRE_SCHEMAS[name] if field.name != SEQUENCE_FROM]
    return pa.table(
        [
            pa.array([row[field.name] for row in rows], pa.string()).dictionary_encode()
            if field.type == REPEATED
            else pa.array([row[field.name] for row in rows], field.type)
            for field in fields
        ],
        schema=pa.schema(fields),
    )


def trade(number: int, **changes: Any) -> dict[str, Any]:
    """Return one trade; `number` is its id and its second after START_US unless `changes` say otherwise.

    `at_us` sets the timestamp, `price` and `quantity` may be text.
    """
    at_us = changes.pop("at_us", START_US + number * 1_000_000)
    row: dict[str, Any] = {
        "exchange": "binance",
        "symbol": "BTCUSDT",
        "asset_class": "crypto",
        "trade_id": str(number),
        "timestamp": at_us,
        "price": "67000.12",
        "quantity": "0.015",
        "currency": "USDT",
        "side": "BUY",
        "trade_conditions": None,
        "source_sequence": number,
        "sequence_space": "",
        "ingestion_timestamp": at_us + 1_000,
        "origin": "live",
        "vendor_data": None,
    }
    row.update(changes)
    row["price"], row["quantity"] = Decimal(row["price"]), Decimal(row["quantity"])
    return row


def quote(number: int, **changes: Any) -> dict[str, Any]:
    """Return one quote, as `trade` does."""
    at_us = changes.pop("at_us", START_US + number * 1_000_000)
    row: dict[str, Any] = {
        "exchange": "binance",
        "symbol": "BTCUSDT",
        "asset_class": "crypto",
        "quote_id": str(number),
        "timestamp": at_us,
        "bid_price": "67000.11",
        "bid_quantity": "1.5",
        "ask_price": "67000.12",
        "ask_quantity": "0.25",
        "currency": "USDT",
        "source_sequence": number,
        "sequence_space": "",
        "ingestion_timestamp": at_us + 1_000,
        "origin": "live",
        "vendor_data": None,
    }
    row.update(changes)
    for name in ("bid_price", "bid_quantity", "ask_price", "ask_quantity"):
        row[name] = Decimal(row[name])
    return row
