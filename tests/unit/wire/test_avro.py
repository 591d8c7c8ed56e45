"""Avro's bytes: equal to fastavro's, read back exactly, and whatever is wrong is wrong for one record alone."""

from __future__ import annotations

import io
import json
import random
from decimal import Decimal
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.errors import UnreadableSchema
from k2ray.model import DECIMAL, WIRE_SCHEMAS
from k2ray.wire.avro_decode import RecordReader
from k2ray.wire.avro_encode import encode_records
from k2ray.wire.avro_schema import SCHEMAS, shape_of
from tests.support.lake import quotes
from tests.support.rows import START_US, trades
from tests.support.schemas import changed


def exact(unscaled: int) -> Decimal:
    """Return so many 10**-18, whatever the context's precision."""
    return Decimal((int(unscaled < 0), tuple(map(int, str(abs(unscaled)))), -18))


LARGEST = exact(10**38 - 1)
NUMBERS = [0, 1, -1, 63, 64, -64, -65, 127, 128, 255, 256, -128, -129, 2**31, 2**63 - 1, -(2**63), 2**62, 10**18]


def plain(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows as fastavro gives and takes them."""
    return [{**row, "vendor_data": dict(row["vendor_data"]) if row["vendor_data"] else None} for row in rows_of(batch)]


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = batch.to_pylist()
    return found


def by_fastavro(rows: list[dict[str, Any]], schema: str) -> list[bytes]:
    parsed = fastavro.parse_schema(json.loads(schema))
    values = []
    for row in rows:
        sink = io.BytesIO()
        fastavro.schemaless_writer(sink, parsed, row)
        values.append(sink.getvalue())
    return values


def read_by_fastavro(values: list[bytes], schema: str) -> list[dict[str, Any]]:
    parsed = fastavro.parse_schema(json.loads(schema))
    return [fastavro.schemaless_reader(io.BytesIO(value), parsed, None) for value in values]  # type: ignore[misc]


def reader(table: str = "trades", schema: str | None = None) -> RecordReader:
    return RecordReader(shape_of(schema or SCHEMAS[table]), table)


def varied(rows: int, seed: int = 1) -> pa.RecordBatch:
    """Return trades whose every column varies: nulls, empty texts, long texts, extreme numbers, lists and maps."""
    chance = random.Random(seed)
    texts = ["", "a", "BTCUSDT", "Zürich€", "exactly8", "nine-byte", "sixteen-bytes-xx", "seventeen-bytes-x", "x" * 300]

    def decimal() -> Decimal:
        choices = [Decimal(0), LARGEST, exact(1 - 10**38), Decimal("0.00012345"), Decimal("12345678901.5"), Decimal(-1)]
        return chance.choice([*choices, exact(chance.randrange(-(10**20), 10**20))])

    def optional(value: Any) -> Any:
        return None if chance.random() < 0.3 else value

    columns: dict[str, list[Any]] = {name: [] for name in WIRE_SCHEMAS["trades"].names}
    for _ in range(rows):
        for name in ("exchange", "symbol", "asset_class", "trade_id", "currency", "side", "sequence_space", "origin"):
            columns[name].append(chance.choice(texts))
        for name in ("timestamp", "ingestion_timestamp"):
            columns[name].append(START_US + chance.choice([0, 5, -START_US, 10**15]))
        columns["price"].append(decimal())
        columns["quantity"].append(decimal())
        for name in ("source_sequence", "sequence_from"):
            columns[name].append(optional(chance.choice(NUMBERS)))
        columns["trade_conditions"].append(optional([chance.choice(texts) for _ in range(chance.randrange(4))]))
        columns["vendor_data"].append(optional([(str(at), chance.choice(texts)) for at in range(chance.randrange(4))]))
    return pa.RecordBatch.from_pydict(columns, schema=WIRE_SCHEMAS["trades"])


@pytest.mark.parametrize("rows", [1, 2, 9, 300])
def test_our_bytes_are_fastavros_and_what_fastavro_wrote_comes_out_exactly(rows: int) -> None:
    for batch in (trades(rows), varied(rows, seed=rows)):
        # fastavro writes an empty map or list as one end mark, as we do.
        given = [
            {**row, "vendor_data": None if row["vendor_data"] is None else dict(row["vendor_data"])}
            for row in rows_of(batch)
        ]
        independent = by_fastavro(given, SCHEMAS["trades"])
        assert encode_records(batch) == independent
        back, refused = reader().read(independent)
        assert refused == []
        assert back.schema.equals(WIRE_SCHEMAS["trades"])
        back.validate(full=True)
        assert back.to_pylist() == batch.to_pylist()
        assert len(read_by_fastavro(encode_records(batch), SCHEMAS["trades"])) == rows


def test_quotes_have_their_own_record() -> None:
    batch = quotes(range(10, 40))
    values = encode_records(batch)
    back, refused = reader("quotes").read(values)
    assert (refused, back.to_pylist()) == ([], batch.to_pylist())
    assert read_by_fastavro(values, SCHEMAS["quotes"])[3]["bid_price"] == batch.to_pylist()[3]["bid_price"]


def test_no_rows_are_no_records() -> None:
    assert encode_records(trades(0)) == []
    assert reader().read([])[0].num_rows == 0


def test_a_slice_of_a_batch_encodes_its_own_rows() -> None:
    batch = varied(50)
    assert encode_records(batch.slice(7, 20)) == encode_records(batch)[7:27]


def test_many_symbols_and_framing() -> None:
    rows = pa.concat_batches([trades(3, first_id=at, symbol=f"SYMBOL{at}") for at in range(1, 150, 3)])
    values = encode_records(rows, b"\x00\x00\x00\x00\x07")
    assert {value[:5] for value in values} == {b"\x00\x00\x00\x00\x07"}
    back, refused = reader().read(values, 5)
    assert (refused, back.to_pylist()) == ([], rows.to_pylist())


@pytest.mark.parametrize("symbols", [["", "é" * 40], ["x" * 63, "x" * 64, "x" * 9_000], [str(at) for at in range(40)]])
def test_symbols_of_every_length_and_number_are_fastavros_bytes(symbols: list[str]) -> None:
    rows = pa.concat_batches([trades(2, first_id=at * 2, symbol=symbol) for at, symbol in enumerate(symbols)])
    assert encode_records(rows) == by_fastavro(plain(rows), SCHEMAS["trades"])


@pytest.mark.parametrize("ids", [[0], [63, 64], [2**62, 2**62 + 1], [2**63 - 2, 0], [8191, 8192, 1]])
def test_numbers_of_one_size_and_of_several_are_fastavros_bytes(ids: list[int]) -> None:
    rows = pa.concat_batches([trades(1, first_id=at) for at in range(len(ids))])
    rows = rows.set_column(10, rows.schema.field(10), pa.array(ids, pa.int64()))
    assert rows.schema.names[10] == "source_sequence"
    assert encode_records(rows) == by_fastavro(plain(rows), SCHEMAS["trades"])


@pytest.mark.parametrize("lengths", [[0], [7], [8], [0, 7], [7, 8], [1, 20], [3, 16, 17]])
def test_repeated_texts_of_every_length_come_out_as_they_went_in(lengths: list[int]) -> None:
    """Those of up to 7 bytes are told apart as numbers, alone or beside longer ones, also in the last record."""
    texts = ["é" * (length // 2) + "x" * (length % 2) for length in lengths * 3]
    rows = [{**plain(trades(1, first_id=at))[0], "symbol": text, "side": text} for at, text in enumerate(texts)]
    back, refused = reader().read(by_fastavro(rows, SCHEMAS["trades"]))
    assert (refused, plain(back)) == ([], rows)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_record_that_ends_inside_of_a_short_text_is_refused_alone(cut: int) -> None:
    """Also as the last one, behind which the buffer goes on with other bytes."""
    for values in ([GOOD[0], GOOD[1][:cut]], [GOOD[1][:cut], GOOD[0]], [GOOD[1][:cut]]):
        back, refused = reader().read(values)
        assert len(refused) == 1
        assert back.to_pylist() == trades(1).to_pylist()[: len(values) - 1]


GOOD = by_fastavro(plain(trades(3)), SCHEMAS["trades"])


def with_price(raw: bytes) -> bytes:
    """Return a record whose price is these bytes."""
    at = GOOD[0].index(b"\x0e\x70\x5d") if b"\x0e\x70\x5d" in GOOD[0] else -1
    assert at == -1
    row = plain(trades(1))[0]
    schema = changed("trades", replace={"price": "bytes"})
    return by_fastavro([{**row, "price": raw}], schema)[0]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"", "ends inside of exchange"),
        (GOOD[0][:-1], "ends inside of sequence_from"),
        (GOOD[0][:30], "ends inside of "),
        (GOOD[0] + b"\x00", "bytes after its end"),
        (b"\x01" + GOOD[0][1:], "exchange has an impossible length"),
        (b"\xfe\xff\xff\xff\x0f" + GOOD[0][1:], "ends inside of exchange"),
        (b"\xff" * 12 + GOOD[0], "exchange is no Avro integer"),
        (b"\x0e\xff\xfe" + GOOD[0][3:], "exchange is not UTF-8"),
        (with_price(b"\x7f" * 16), "price does not fit"),
        (with_price(b"\x00" * 17), "price does not fit"),
        (with_price((-(10**38)).to_bytes(16, "big", signed=True)), "price does not fit"),
    ],
)
def test_a_poison_record_is_refused_alone_with_its_reason(bad: bytes, why: str) -> None:
    back, refused = reader().read([GOOD[0], bad, GOOD[1], bad, GOOD[2]])
    assert [at for at, _ in refused] == [1, 3]
    assert all(why in reason for _, reason in refused)
    assert back.to_pylist() == trades(3).to_pylist()


def test_the_widest_decimals_are_not_refused() -> None:
    for number in (10**38 - 1, -(10**38) + 1, 2**63, -(2**63), -(2**63) - 1, 255, -255, 2**64, 0):
        raw = number.to_bytes(16, "big", signed=True)
        back, refused = reader().read([with_price(raw)])
        assert refused == []
        assert back.column("price")[0].as_py() == exact(number)
    assert reader().read([with_price(b"")])[0].column("price")[0].as_py() == 0


def test_a_branch_that_the_schema_does_not_have_is_refused() -> None:
    at = GOOD[0].rindex(b"live") + 4
    bad = GOOD[0][:at] + b"\x04" + GOOD[0][at + 1 :]
    _, refused = reader().read([bad])
    assert refused == [(0, "vendor_data has a branch that its schema does not have")]


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_whatever_is_flipped_or_cut_its_neighbours_come_out_whole(data: st.DataObject) -> None:
    """A fuzzed record is read as fastavro reads it, or refused; the two beside it are always there."""
    batch = varied(3, seed=data.draw(st.integers(0, 5)))
    values = encode_records(batch)
    value = bytearray(values[1])
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
    values[1] = bytes(value[: data.draw(st.integers(0, len(value)))])
    back, refused = reader().read(values)
    back.validate(full=True)
    rows = back.to_pylist()
    expected = batch.to_pylist()
    assert (rows[0], rows[-1]) == (expected[0], expected[2])
    assert len(rows) + len(refused) == 3
    if not refused:
        assert len(encode_records(back.slice(1, 1))[0]) <= len(values[1]) + 16


def test_an_array_in_several_blocks_with_sizes_is_read_too() -> None:
    row = plain(trades(1))[0]
    schema = SCHEMAS["trades"]
    value = by_fastavro([{**row, "trade_conditions": ["A", "BB"]}], schema)[0]
    whole = b"\x02\x04\x02A\x04BB\x00"
    assert whole in value
    blocks = b"\x02\x01\x04\x02A\x02\x04BB\x00"  # a block of one with its size of 2 bytes, a block of one, the end
    back, refused = reader().read([value.replace(whole, blocks)])
    assert (refused, back.column("trade_conditions")[0].as_py()) == ([], ["A", "BB"])


def test_a_block_that_claims_more_than_there_is_is_refused_at_once() -> None:
    value = by_fastavro([{**plain(trades(1))[0], "trade_conditions": ["A"]}], SCHEMAS["trades"])[0]
    bad = value.replace(b"\x02\x02\x02A\x00", b"\x02\xfe\xff\xff\xff\xff\xff\xff\xff\x7f\x02A\x00")
    assert bad != value
    _, refused = reader().read([bad])
    assert refused == [(0, "ends inside of trade_conditions")]


# What somebody else's schema may look like.


def test_fields_that_we_do_not_know_are_read_over_and_those_it_lacks_are_null() -> None:
    schema = json.loads(changed("trades", drop="vendor_data"))
    extra: list[tuple[Any, Any]] = [
        ("string", "x"),
        ("long", 5),
        ("double", 1.5),
        ("float", 1.5),
        ("boolean", True),
        ("bytes", b"xyz"),
        ("null", None),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "B"),
        ({"type": "fixed", "name": "F", "size": 3}, b"abc"),
        ({"type": "array", "items": "string"}, ["a", "b"]),
        ({"type": "map", "values": "string"}, {"a": "b"}),
        (["null", "string"], None),
        (["string", "null"], "y"),
    ]
    fields: list[Any] = []
    for at, ((kind, _), field) in enumerate(zip(extra, schema["fields"], strict=False)):
        fields += [{"name": f"more_{at}", "type": kind}, field]
    schema["fields"] = fields + schema["fields"][len(extra) :]
    rows = [{**row, **{f"more_{at}": value for at, (_, value) in enumerate(extra)}} for row in plain(trades(4))]
    text = json.dumps(schema)
    back, refused = reader(schema=text).read(by_fastavro(rows, text))
    assert refused == []
    assert back.column("vendor_data").null_count == 4
    expected = trades(4)
    for name in expected.schema.names:
        if name != "vendor_data":
            assert back.column(name).to_pylist() == expected.column(name).to_pylist()


def test_milliseconds_smaller_scales_fixed_decimals_and_nullable_columns_are_converted() -> None:
    schema = changed(
        "trades",
        replace={
            "timestamp": {"type": "long", "logicalType": "timestamp-millis"},
            "price": {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 8},
            "quantity": {
                "type": "fixed",
                "name": "Q",
                "size": 12,
                "logicalType": "decimal",
                "precision": 28,
                "scale": 2,
            },
            "side": ["null", "string"],
            "source_sequence": "int",
        },
    )
    more = {"price": Decimal("0.00012345"), "quantity": Decimal("-12345.25"), "source_sequence": 7}
    rows = [{**row, **more} for row in plain(trades(3))]
    rows[1]["side"] = None
    back, refused = reader(schema=schema).read(by_fastavro(rows, schema))
    assert refused == [(1, "side is null, which it may not be")]
    row = back.to_pylist()[0]
    assert (row["price"], row["quantity"], row["source_sequence"]) == (Decimal("0.00012345"), Decimal("-12345.25"), 7)
    assert row["timestamp"] == trades(1).to_pylist()[0]["timestamp"].replace(microsecond=0)
    assert back.column("price").type == DECIMAL


def test_a_number_too_large_for_our_scale_is_refused_alone() -> None:
    schema = changed("trades", scale=2)
    rows = [{**row, "price": Decimal("1.25"), "quantity": Decimal("1.25")} for row in plain(trades(3))]
    rows[1]["price"] = Decimal(10**30)
    back, refused = reader(schema=schema).read(by_fastavro(rows, schema))
    assert [at for at, _ in refused] == [1]
    assert back.column("price").to_pylist() == [Decimal("1.25")] * 2


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ('"string"', "not the schema of a record"),
        ("nonsense", "not an Avro schema"),
        (SCHEMAS["quotes"], "has no field trade_id"),
        (changed("trades", replace={"price": "double"}), "price is double"),
        (changed("trades", replace={"timestamp": "long"}), "timestamp is long"),
        (changed("trades", replace={"symbol": ["string", "long"]}), "a union of more than null"),
        (changed("trades", add="x", kind={"type": "record", "name": "X", "fields": []}), "a record inside"),
        (changed("trades", add="x", kind={"type": "array", "items": "long"}), "an array of long"),
        (changed("trades", add="x", kind="Unheard"), "type 'Unheard' is not known"),
    ],
)
def test_a_schema_that_is_not_this_tables_is_unreadable_and_says_why(schema: str, why: str) -> None:
    with pytest.raises(UnreadableSchema, match=why):
        reader(schema=schema)


def test_large_runs_are_read_together() -> None:
    """Not a benchmark: a loop over 20,000 rows in Python would take a second and more."""
    rows = trades(1)
    values = encode_records(rows) * 20_000
    back, refused = reader().read(values)
    assert (back.num_rows, refused) == (20_000, [])
    assert np.unique(back.column("symbol").indices.to_numpy()).tolist() == [0]
