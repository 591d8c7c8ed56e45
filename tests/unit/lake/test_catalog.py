"""Catalog, schema and progress key."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from sqlalchemy import text

from k2ray.errors import CatalogUnavailable, OperatorNeeded
from k2ray.lake.catalog import catalog_properties, ensure_table, load_table, open_catalog
from k2ray.lake.durable import DurableFileIO, local_path
from k2ray.lake.progress import Offset, Progress, read_progress
from k2ray.lake.schema import iceberg_schema, partition_spec, sort_order
from k2ray.layout import DataDir
from k2ray.settings import Settings, load_settings
from tests.support.lake import TRADES_TOPIC, lake_settings, open_table


def test_a_table_has_the_models_columns_and_stable_ids() -> None:
    schema = iceberg_schema("trades")
    assert [(field.field_id, field.name, field.required) for field in schema.fields][:6] == [
        (1, "exchange", True),
        (2, "symbol", True),
        (3, "asset_class", True),
        (4, "trade_id", True),
        (5, "timestamp", True),
        (6, "price", True),
    ]
    assert schema.highest_field_id == 18
    assert "sequence_from" not in schema.column_names
    assert [field.name for field in iceberg_schema("quotes").fields if not field.required] == [
        "source_sequence",
        "vendor_data",
    ]


def test_a_table_is_partitioned_and_ordered_as_designed(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    schema = iceberg_schema("trades")
    assert table.spec() == partition_spec(schema)
    assert [(field.name, str(field.transform)) for field in table.spec().fields] == [
        ("timestamp_day", "day"),
        ("exchange", "identity"),
    ]
    assert [field.source_id for field in table.sort_order().fields] == [2, 5]
    assert table.sort_order().fields == sort_order(schema).fields
    assert table.metadata.properties["write.metadata.previous-versions-max"] == "10"


def test_the_catalog_is_shared_by_processes_without_lock_errors(tmp_path: Path) -> None:
    catalog: Any = open_catalog(lake_settings(tmp_path), DataDir(tmp_path))
    with catalog.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA busy_timeout")).scalar() == 30_000
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2


def test_many_that_open_a_new_catalog_at_once_all_succeed(tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        tables = list(pool.map(lambda _: open_table(tmp_path), range(6)))
    assert len({table.metadata.table_uuid for table in tables}) == 1
    assert {len(table.metadata.snapshots) for table in tables} == {1}


def test_a_missing_table_is_none_and_a_broken_catalog_is_unavailable(tmp_path: Path) -> None:
    settings, layout = lake_settings(tmp_path), DataDir(tmp_path)
    catalog = open_catalog(settings, layout)
    assert load_table(catalog, settings, "trades") is None
    layout.catalog.write_bytes(b"this is no database" * 100)
    with pytest.raises(CatalogUnavailable):
        open_catalog(settings, layout)


def test_other_catalogs_get_their_own_properties_untouched(tmp_path: Path) -> None:
    settings = with_catalog(
        tmp_path, {"type": "rest", "uri": "https://catalog", "token": "t", "oauth2-server-uri": "u"}
    )
    properties = catalog_properties(settings, DataDir(tmp_path))
    assert properties["type"] == "rest"
    assert properties["token"] == "t"
    assert properties["oauth2-server-uri"] == "u"
    elsewhere = load_settings(arguments={"data_dir": str(tmp_path), "lake": {"warehouse": "s3://lake/k2"}}, environ={})
    assert "py-io-impl" not in catalog_properties(elsewhere, DataDir(tmp_path))


def test_a_folder_with_odd_letters_works(tmp_path: Path) -> None:
    """`#` and `?` would end a URI's path."""
    odd = tmp_path / "my data #1?"
    table = open_table(odd)
    assert (odd / "warehouse").is_dir()
    assert table.metadata.current_snapshot_id is not None


def test_metadata_is_on_disk_before_the_catalog_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyiceberg does not fsync: a power cut would leave the catalog naming an empty metadata.json."""
    synced: set[str] = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    table = open_table(tmp_path)
    metadata = str(local_path(table.metadata_location))
    assert metadata in synced
    assert os.path.dirname(metadata) in synced
    assert {str(file) for file in tmp_path.rglob("*.avro")} <= synced


def test_deleting_what_is_gone_is_no_error(tmp_path: Path) -> None:
    DurableFileIO().delete(f"file://{tmp_path}/nothing")
    assert local_path("s3://bucket/key") is None
    assert local_path("/a/b") == "/a/b"


def test_the_genesis_says_earliest_for_every_partition(tmp_path: Path) -> None:
    settings = lake_settings(tmp_path)
    catalog = open_catalog(settings, DataDir(tmp_path))
    table = ensure_table(catalog, settings, "trades", {TRADES_TOPIC: 3}, cluster="c", topics={TRADES_TOPIC: "id"})
    summary = table.current_snapshot().summary.additional_properties  # type: ignore[union-attr]
    assert summary["k2ray.offsets"] == f'{{"{TRADES_TOPIC}":[[0,-1],[0,-1],[0,-1]]}}'
    assert summary["k2ray.cluster"] == "c"
    assert summary["total-records"] == "0"
    assert ensure_table(catalog, settings, "trades").metadata_location == table.metadata_location


def test_a_key_reads_back_as_it_was_written() -> None:
    progress = Progress(
        offsets={("a", 0): Offset(5, 2), ("a", 1): Offset(0), ("b", 2): Offset(2**40, None)},
        ledger="file:///x.arrow",
        cluster="c",
        topics={"a": "1", "b": "2"},
    )
    found = read_progress(snapshot(progress.to_summary()))
    assert found is not None
    assert found.offsets == {**progress.offsets, ("b", 0): Offset(0), ("b", 1): Offset(0)}
    assert found.offsets[("a", 0)].epoch == 2
    assert found.offsets[("a", 1)].epoch is None
    assert (found.ledger, found.cluster, found.topics, found.snapshot_id) == (
        "file:///x.arrow",
        "c",
        progress.topics,
        7,
    )
    assert read_progress(snapshot({})) is None


@pytest.mark.parametrize(
    "broken",
    [
        {"k2ray.version": "99"},
        {"k2ray.offsets": "not json"},
        {"k2ray.offsets": '{"a":[["x",0]]}'},
        {"k2ray.offsets": '{"a":[[1]]}'},
        {"k2ray.offsets": "[]"},
    ],
)
def test_a_key_that_cannot_be_read_stops_instead_of_guessing(broken: dict[str, str]) -> None:
    with pytest.raises(OperatorNeeded):
        read_progress(snapshot({**Progress(offsets={("a", 0): Offset(1)}).to_summary(), **broken}))


def snapshot(properties: dict[str, str]) -> Snapshot:
    summary = Summary(Operation.APPEND, **properties)
    return Snapshot(snapshot_id=7, sequence_number=1, timestamp_ms=1, manifest_list="x", summary=summary)


def with_catalog(folder: Path, catalog: dict[str, str]) -> Settings:
    return load_settings(arguments={"data_dir": str(folder), "lake": {"catalog": catalog}}, environ={})
