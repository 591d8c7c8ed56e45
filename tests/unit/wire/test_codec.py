"""What the wire promises: exact rows out again, and nothing but `BadRecord` for anything else."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.errors import BadRecord
from k2ray.model import QUOTES_WIRE, SEAL_WIRE, TRADES_WIRE
from k2ray.wire.codec import Seal, decode, encode_rows, encode_seal
from tests.support.rows import trades

SEAL = Seal("binance", "BTCUSDT", "agg", 10, 20, "the exchange has them no more")


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("rows", [0, 1, 700])
def test_rows_come_out_as_they_went_in(rows: int, compression: str | None) -> None:
    batch = trades(rows)
    value, headers = encode_rows("trades", batch, compression)  # type: ignore[arg-type]
    assert headers == [("k2ray-schema", b"trades/1"), ("k2ray-kind", b"rows")]
    back = decode(value, headers)
    assert isinstance(back, pa.RecordBatch)
    assert back.schema.equals(TRADES_WIRE)
    assert back.to_pylist() == batch.to_pylist()


def test_prices_and_quantities_stay_exact() -> None:
    """Traps 2 and 13: 12345678901.5 overflows decimal(18,8), 0.00012345 raised in decimal(18,6)."""
    back = decode(*encode_rows("trades", trades(1)))
    assert isinstance(back, pa.RecordBatch)
    row = back.to_pylist()[0]
    assert (row["price"], row["quantity"]) == (Decimal("0.00012345"), Decimal("12345678901.5"))


def test_a_seal_comes_out_as_it_went_in() -> None:
    value, headers = encode_seal(SEAL)
    assert headers == [("k2ray-schema", b"seal/1"), ("k2ray-kind", b"seal")]
    assert decode(value, headers) == SEAL


def test_callers_lists_of_headers_are_their_own() -> None:
    _, first = encode_rows("trades", trades(1))
    first.append(("more", b""))
    _, second = encode_rows("trades", trades(1))
    assert len(second) == 2


def test_the_wrong_schema_is_the_callers_error() -> None:
    with pytest.raises(ValueError, match="not the wire schema of quotes: columns"):
        encode_rows("quotes", trades(1))


def stream(schema: pa.Schema, *batches: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    value: bytes = sink.getvalue().to_pybytes()
    return value


GOOD, HEADERS = encode_rows("trades", trades(3))
PLAIN = pa.schema([field.with_type(pa.string()) if field.name == "symbol" else field for field in TRADES_WIRE])
LOOSE = pa.schema([field.with_nullable(True) for field in TRADES_WIRE])
WITHOUT_PRICE = trades(1).set_column(5, TRADES_WIRE.field("price"), pa.nulls(1, TRADES_WIRE.field("price").type))
EMPTY_SEAL = pa.RecordBatch.from_pydict(
    {
        "exchange": ["b"],
        "symbol": ["s"],
        "sequence_space": [""],
        "sequence_from": [5],
        "sequence_to": [5],
        "reason": [""],
    },
    schema=SEAL_WIRE,
)
SEAL_HEADERS = encode_seal(SEAL)[1]


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (GOOD, [], "unknown kind of record: None"),
        (GOOD, None, "unknown kind of record: None"),
        (GOOD, [("k2ray-schema", b"trades/1"), ("k2ray-kind", b"blob")], "unknown kind of record: b'blob'"),
        (GOOD, [("k2ray-schema", b"trades/2"), ("k2ray-kind", b"rows")], "unknown schema: b'trades/2'"),
        (GOOD, [("k2ray-schema", b"quotes/1"), ("k2ray-kind", b"rows")], "other columns .*ask_price"),
        (GOOD, SEAL_HEADERS, "other columns"),
        (GOOD, [("k2ray-schema", b"seal/9"), ("k2ray-kind", b"seal")], "unknown schema of a seal"),
        (b"", HEADERS, "empty value"),
        (None, HEADERS, "empty value"),
        (b'{"e":"trade"}', HEADERS, "corrupt Arrow stream"),
        (GOOD[:-700], HEADERS, "corrupt Arrow stream"),
        (GOOD + b"x", HEADERS, "after the end of the stream|corrupt"),
        (stream(TRADES_WIRE), HEADERS, "no batch"),
        (stream(TRADES_WIRE, trades(1), trades(1)), HEADERS, "more than one batch"),
        (stream(PLAIN), HEADERS, "symbol is string"),
        (stream(TRADES_WIRE, WITHOUT_PRICE), HEADERS, "nulls in price"),
        (stream(LOOSE, trades(1).cast(LOOSE)), HEADERS, "other columns"),
        (stream(SEAL_WIRE, EMPTY_SEAL), SEAL_HEADERS, "a seal of no ids"),
        (stream(SEAL_WIRE, EMPTY_SEAL.slice(0, 0)), SEAL_HEADERS, "a seal of 0 rows"),
    ],
)
def test_an_undecodable_record_is_a_bad_record_with_its_reason(
    value: bytes | None, headers: list[tuple[str, bytes | None]] | None, reason: str
) -> None:
    """Trap 3: undecodable records were skipped; the reader must be able to tell, and to say why."""
    with pytest.raises(BadRecord, match=reason):
        decode(value, headers)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_corrupt_bytes_never_get_past_the_codec(data: st.DataObject) -> None:
    """Whatever is flipped or cut, the answer is rows that can be looked at, or `BadRecord`."""
    value = bytearray(data.draw(st.sampled_from([GOOD, encode_rows("trades", trades(3), "lz4")[0]])))
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(value)))
    try:
        back = decode(bytes(value[: cut or len(value)]), HEADERS)
    except BadRecord:
        return
    assert isinstance(back, pa.RecordBatch)
    assert back.schema.equals(TRADES_WIRE)
    assert len(back.to_pylist()) == back.num_rows


def test_quotes_have_their_own_schema() -> None:
    empty = pa.RecordBatch.from_pylist([], schema=QUOTES_WIRE)
    value, headers = encode_rows("quotes", empty)
    assert headers[0] == ("k2ray-schema", b"quotes/1")
    assert decode(value, headers).schema.equals(QUOTES_WIRE)  # type: ignore[union-attr]
