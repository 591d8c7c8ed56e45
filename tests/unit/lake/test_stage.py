"""Staged files: sorted, pruned by their statistics, readable by field id, durable and named by their offsets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.table import Table
from pyiceberg.types import StringType

from k2ray.errors import CatalogUnavailable
from k2ray.lake.commit import Append, commit_append
from k2ray.lake.durable import local_path
from k2ray.lake.progress import Offset
from k2ray.lake.stage import ROWS_PER_GROUP, Origin, concat_rows, sort_rows, stage
from k2ray.model import WIRE_SCHEMAS, table_schema
from tests.support.lake import NOON_US, TRADES_TOPIC, constant, open_table, quotes, trades

DAY_US = 86_400_000_000
ORIGIN = Origin("t0p-ic_id", 2, 5, 9)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return open_table(tmp_path)


def path_of(location: str) -> str:
    return str(local_path(location))


def test_rows_come_back_exactly_as_they_went_in(table: Table) -> None:
    rows = trades(range(100), ["BTCUSDT", "ETHUSDT"] * 50)
    (file,) = stage(table, "trades", concat_rows([rows]), ORIGIN)
    commit_append(table, Append((file,), {}, {(TRADES_TOPIC, 0): Offset(1)}, None, None, {}))
    expected = pa.Table.from_batches([rows]).drop_columns(["sequence_from"])
    order = [("symbol", "ascending"), ("source_sequence", "ascending")]
    plain = pa.schema([field.with_nullable(True) for field in table_schema("trades")])
    wanted = pa.table({name: expected[name].cast(plain.field(name).type) for name in plain.names}).sort_by(order)
    stored = table.scan().to_arrow().sort_by(order)
    for name in plain.names:
        assert stored[name].to_pylist() == wanted[name].to_pylist(), name


def test_the_wire_schema_of_each_table_can_be_staged(tmp_path: Path) -> None:
    table = open_table(tmp_path, table_name="quotes")
    (file,) = stage(table, "quotes", concat_rows([quotes(range(1, 50, 3))]), ORIGIN)
    assert file.record_count == 17
    assert set(WIRE_SCHEMAS) == {"trades", "quotes"}


def test_one_file_a_day_and_exchange(table: Table) -> None:
    before, after = trades(range(3), start_us=NOON_US), trades(range(3, 5), start_us=NOON_US + DAY_US)
    other = trades(range(7, 10), exchange="binance_usdm", start_us=NOON_US)
    files = stage(table, "trades", concat_rows([before, after, other]), ORIGIN)
    day = NOON_US // DAY_US
    assert {(tuple(file.partition[at] for at in (0, 1)), file.record_count) for file in files} == {
        ((day, "binance"), 3),
        ((day + 1, "binance"), 2),
        ((day, "binance_usdm"), 3),
    }
    assert all("/timestamp_day=2024-06-0" in file.file_path for file in files)


def test_midnight_belongs_to_the_new_day_also_before_1970(table: Table) -> None:
    rows = trades([0, 1], start_us=-1, step_us=1)
    files = stage(table, "trades", concat_rows([rows]), ORIGIN)
    assert sorted(file.partition[0] for file in files) == [-1, 0]
    assert {"timestamp_day=1969-12-31", "timestamp_day=1970-01-01"} == {file.file_path.split("/")[-3] for file in files}


def test_rows_are_sorted_by_symbol_and_time_and_otherwise_keep_their_order() -> None:
    rng = np.random.default_rng(7)
    names = [f"S{number}" for number in range(30)]
    pieces = []
    for start in range(0, 3_000, 300):
        symbols = [names[at] for at in rng.integers(0, 30, 300)]
        pieces.append(trades(rng.permutation(np.arange(start, start + 300)), symbols, step_us=0 if start % 600 else 5))
    rows = concat_rows(pieces)
    found = sort_rows(rows)
    plain = pa.table({"symbol": rows["symbol"].cast(pa.string()), "timestamp": rows["timestamp"]})
    plain = plain.append_column("at", pa.array(range(rows.num_rows)))
    wanted = plain.sort_by([("symbol", "ascending"), ("timestamp", "ascending"), ("at", "ascending")])
    assert found["source_sequence"].to_pylist() == rows["source_sequence"].take(wanted["at"]).to_pylist()


def test_row_groups_are_pruned_by_symbol(table: Table) -> None:
    names = np.array([f"SYM{number:02}" for number in range(40)])
    rows = 3 * ROWS_PER_GROUP
    symbols = pa.DictionaryArray.from_arrays(pa.array((np.arange(rows) % 40).astype(np.int32)), pa.array(names))
    batch = trades(np.arange(rows))
    at = batch.schema.get_field_index("symbol")
    (file,) = stage(table, "trades", concat_rows([batch.set_column(at, batch.schema.field(at), symbols)]), ORIGIN)
    metadata = pq.read_metadata(path_of(file.file_path))
    assert metadata.num_row_groups == 3
    statistics = [metadata.row_group(number).column(at).statistics for number in range(3)]
    assert [(found.min, found.max) for found in statistics] == [
        ("SYM00", "SYM13"),
        ("SYM13", "SYM26"),
        ("SYM26", "SYM39"),
    ]


def test_bounds_and_counts_are_those_of_the_rows(table: Table) -> None:
    (file,) = stage(table, "trades", concat_rows([trades(range(10, 20))]), ORIGIN)
    ids = {field.name: field.field_id for field in table.schema().fields}
    assert file.lower_bounds[ids["symbol"]] == b"BTCUSDT"
    assert file.lower_bounds[ids["source_sequence"]] == (10).to_bytes(8, "little")
    assert file.upper_bounds[ids["source_sequence"]] == (19).to_bytes(8, "little")
    assert file.upper_bounds[ids["timestamp"]] == (NOON_US + 19_000).to_bytes(8, "little")
    assert file.value_counts[ids["price"]] == 10
    assert file.null_value_counts[table.schema().find_field("trade_conditions.element").field_id] == 10
    assert ids["price"] not in file.lower_bounds, "bounds that nothing prunes by only make manifests larger"
    assert file.file_size_in_bytes == Path(path_of(file.file_path)).stat().st_size


def test_a_file_can_be_read_by_field_id_and_by_duckdb(table: Table) -> None:
    (file,) = stage(table, "trades", concat_rows([trades(range(10))]), ORIGIN)
    schema = pq.read_schema(path_of(file.file_path))
    assert [schema.field(name).metadata[b"PARQUET:field_id"] for name in schema.names] == [
        str(number).encode() for number in range(1, 16)
    ]
    assert schema.field("symbol").type == pa.string(), "no Arrow schema inside: other readers see plain strings"
    found = duckdb.sql(f"select sum(source_sequence), max(price)::varchar from '{path_of(file.file_path)}'").fetchall()
    assert found == [(45, "60000.000712710000000000")]


def test_a_column_that_somebody_renamed_or_added_does_not_stop_the_writer(table: Table) -> None:
    with table.update_schema() as update:
        update.rename_column("currency", "quote_currency")
        update.add_column("note", StringType())
    (file,) = stage(table, "trades", concat_rows([trades(range(3))]), ORIGIN)
    commit_append(table, Append((file,), {}, {(TRADES_TOPIC, 0): Offset(1)}, None, None, {}))
    stored = table.scan().to_arrow()
    assert stored["quote_currency"].to_pylist() == ["USDT"] * 3
    assert stored["note"].to_pylist() == [None] * 3


def test_a_files_name_tells_its_offsets() -> None:
    assert Origin.of(f"s3://bucket/data/day=1/{ORIGIN.file_name()}") == ORIGIN
    odd = Origin("a.b/c d", 0, 0, 10**12)
    assert Origin.of(odd.file_name()) == odd
    assert "/" not in odd.file_name()
    for other in ("k2ray.parquet", "00000-0-abc.parquet", "k2ray.id.x.1.2.uuid.parquet"):
        assert Origin.of(other) is None


def test_an_exchange_with_odd_letters_stays_inside_the_folder(table: Table) -> None:
    (file,) = stage(table, "trades", concat_rows([trades(range(3), exchange="../x")]), ORIGIN)
    assert "exchange=..%2Fx" in file.file_path
    assert file.partition[1] == "../x"


def test_a_file_is_on_disk_before_it_counts_as_staged(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    (file,) = stage(table, "trades", concat_rows([trades(range(3))]), ORIGIN)
    path = path_of(file.file_path)
    assert path in synced
    assert os.path.dirname(path) in synced[synced.index(path) :]
    assert os.path.dirname(os.path.dirname(path)) in synced, "the new folders' own entries too"


def test_a_full_disk_is_tried_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CatalogUnavailable, match="No space left"):
        stage(table, "trades", concat_rows([trades(range(3))]), ORIGIN)


def test_batches_with_different_dictionaries_are_joined() -> None:
    first = trades(range(2), ["B", "A"])
    second = trades(range(2, 4), ["C", "A"])
    rows = sort_rows(concat_rows([first, second]))
    assert rows["symbol"].to_pylist() == ["A", "A", "B", "C"]
    assert rows["source_sequence"].to_pylist() == [1, 3, 0, 2]
    assert constant("x", 2).to_pylist() == ["x", "x"]
