"""What the wire promises with either codec: rows out as they went in, in order, and a refusal for anything else."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.lake.intake import Intake
from k2ray.ledger import Ledger
from k2ray.log.records import Fetched, LogRecord, in_runs
from k2ray.model import CHANNELS, WIRE_SCHEMAS
from k2ray.settings import Wire
from k2ray.wire.codec import Seal, encode_seal
from k2ray.wire.encoder import AvroEncoder, RowEncoder, encoder_for
from k2ray.wire.schemas import Schemas
from tests.support.lake import TRADES_TOPIC, quotes
from tests.support.rows import trades
from tests.support.schemas import MemorySchemas

TOPIC = TRADES_TOPIC
BOTH = pytest.mark.parametrize("codec", ["arrow", "avro"])


class Line:
    """An encoder at one end, an intake at the other, with the same registry."""

    def __init__(self, codec: str, table: str = "trades") -> None:
        self.registry = MemorySchemas()
        self.table = table
        self.encoder: RowEncoder = encoder_for(Wire.model_validate({"codec": codec}), self.registry)
        if isinstance(self.encoder, AvroEncoder):
            self.encoder.learn(TOPIC, table)
        self.intake = Intake(table, Ledger(), Schemas(self.registry, 10))
        self.offset = 0

    def send(self, rows: pa.RecordBatch) -> list[LogRecord]:
        values, headers = self.encoder.encode(TOPIC, self.table, rows)
        return [self.record(value, headers) for value in values]

    def record(self, value: bytes, headers: list[tuple[str, bytes]]) -> LogRecord:
        self.offset += 1
        return LogRecord(TOPIC, 0, self.offset - 1, 0, 1_000, value, headers)

    def read(self, records: list[LogRecord]) -> tuple[list[pa.RecordBatch | Seal], list[tuple[int, str]]]:
        (part,) = self.intake.read(in_runs(records))
        assert part.records == len(records)
        assert part.end.next == records[-1].offset + 1
        return part.pieces, [(letter.offset, letter.reason) for letter in part.dead]


def rows_of(pieces: list[pa.RecordBatch | Seal]) -> list[dict[str, object]]:
    return [row for piece in pieces if not isinstance(piece, Seal) for row in piece.to_pylist()]


@BOTH
@pytest.mark.parametrize("rows", [1, 2, 700])
def test_rows_come_out_as_they_went_in(codec: str, rows: int) -> None:
    line, batch = Line(codec), trades(rows)
    records = line.send(batch)
    assert len(records) == (rows if codec == "avro" else 1)
    pieces, dead = line.read(records)
    assert dead == []
    assert rows_of(pieces) == batch.to_pylist()
    assert all(piece.schema.equals(WIRE_SCHEMAS["trades"]) for piece in pieces)  # type: ignore[union-attr]


@BOTH
def test_no_rows_are_no_rows(codec: str) -> None:
    line = Line(codec)
    records = line.send(trades(0))
    assert not records or rows_of(line.read(records)[0]) == []


@BOTH
def test_prices_and_quantities_stay_exact(codec: str) -> None:
    """Traps 2 and 13: 12345678901.5 overflows decimal(18,8), 0.00012345 raised in decimal(18,6)."""
    line = Line(codec)
    (row,) = rows_of(line.read(line.send(trades(1)))[0])
    assert (row["price"], row["quantity"]) == (Decimal("0.00012345"), Decimal("12345678901.5"))


@BOTH
def test_quotes_have_their_own_schema(codec: str) -> None:
    line, batch = Line(codec, "quotes"), quotes(range(5, 25, 2))
    pieces, dead = line.read(line.send(batch))
    assert (rows_of(pieces), dead) == (batch.to_pylist(), [])


@BOTH
def test_another_tables_rows_are_refused_each_record_with_its_offset(codec: str) -> None:
    """Trap 14: the consumer always wrote trades."""
    line, other = Line(codec), Line(codec, "quotes")
    other.registry.kept[1], line.registry.kept[9] = other.registry.kept.get(1, ""), other.registry.kept.get(1, "")
    records = other.send(quotes(range(2)))
    if codec == "avro":
        records = [record._replace(value=b"\0\0\0\0\x09" + record.value[5:]) for record in records]
    _, dead = line.read(records)
    assert [offset for offset, _ in dead] == [record.offset for record in records]
    assert all("another table" in reason or "no field trade_id" in reason for _, reason in dead)


@BOTH
def test_the_wrong_schema_is_the_callers_error(codec: str) -> None:
    with pytest.raises(ValueError, match="not the wire schema of trades"):
        Line(codec).encoder.encode(TOPIC, "trades", quotes(range(2)))


@BOTH
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_corrupt_record_never_takes_its_neighbours_with_it(codec: str, data: st.DataObject) -> None:
    line = Line(codec)
    before, bad, after = line.send(trades(2)), line.send(trades(1, first_id=5)), line.send(trades(2, first_id=8))
    value = bytearray(bad[0].value)
    for _ in range(data.draw(st.integers(1, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(value)))
    broken = bad[0]._replace(value=bytes(value[: cut or len(value)]))
    pieces, dead = line.read([*before, broken, *after])
    rows = rows_of(pieces)
    good = trades(2).to_pylist() + trades(2, first_id=8).to_pylist()
    assert [row for row in good if row not in rows] == []
    assert [offset for offset, _ in dead] in ([], [broken.offset])
    assert len(rows) + len(dead) >= 5 or not rows[2:-2]


@BOTH
def test_rows_and_seals_keep_their_order(codec: str) -> None:
    """A seal closes a gap between the rows before it and those after it, whatever the rows look like."""
    line = Line(codec)
    seal = Seal("binance", "BTCUSDT", "", 3, 6, "gone")
    value, headers = encode_seal(seal)
    records = [*line.send(trades(3)), line.record(value, headers), *line.send(trades(3, first_id=7))]
    pieces, dead = line.read(records)
    assert dead == []
    at = pieces.index(seal)
    assert [row["source_sequence"] for row in rows_of(pieces[:at])] == [1, 2, 3]
    assert [row["source_sequence"] for row in rows_of(pieces[at:])] == [7, 8, 9]


def test_a_topic_may_change_its_codec_in_the_middle() -> None:
    arrow, avro = Line("arrow"), Line("avro")
    records: list[LogRecord] = []
    for number in range(6):
        sent = (arrow if number % 2 else avro).send(trades(2, first_id=1 + 2 * number))
        records += [record._replace(offset=len(records) + at) for at, record in enumerate(sent)]
    pieces, dead = avro.read(records)
    assert dead == []
    assert [row["source_sequence"] for row in rows_of(pieces)] == list(range(1, 13))


def test_somebody_elses_headers_do_not_hide_that_a_record_is_avro() -> None:
    line = Line("avro")
    (record,) = line.send(trades(1))
    pieces, dead = line.read([record._replace(headers=[("traceparent", b"00-1-1-01")])])
    assert (len(rows_of(pieces)), dead) == (1, [])


def test_records_of_several_schemas_are_each_read_with_their_own() -> None:
    line = Line("avro")
    number = line.registry.id_for("t-value", line.registry.kept[1].replace('"Trade"', '"Deal"'))
    first, second, third = (line.send(trades(2, first_id=at)) for at in (1, 3, 5))
    second = [record._replace(value=b"\0" + number.to_bytes(4, "big") + record.value[5:]) for record in second]
    pieces, dead = line.read([*first, *second, *third])
    assert ([row["source_sequence"] for row in rows_of(pieces)], dead) == ([1, 2, 3, 4, 5, 6], [])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "no Avro record: 0 bytes"),
        (b"\0\0\0", "no Avro record: 3 bytes"),
        (b'{"e":"trade"}', "no Avro record: its first byte is 123, not 0"),
        (b"\0\0\0\0\x63rest", "unknown schema: 99 is not in memory"),
        (b"\0\0\0\0\x01", "ends inside of exchange"),
    ],
)
def test_a_record_that_is_not_framed_or_of_no_schema_is_refused_alone(value: bytes, reason: str) -> None:
    """Trap 3: undecodable records were logged, skipped and committed."""
    line = Line("avro")
    good = line.send(trades(2))
    records = [good[0], line.record(value, []), good[1]._replace(offset=9)]
    (part,) = line.intake.read(in_runs(records))
    assert [(letter.offset, letter.raw) for letter in part.dead] == [(2, value)]
    assert reason in part.dead[0].reason
    assert [row["source_sequence"] for row in rows_of(part.pieces)] == [1, 2]


def test_runs_hold_what_has_no_headers_and_keep_each_partitions_order() -> None:
    line = Line("avro")
    one, two = line.send(trades(2)), line.send(trades(2, first_id=3))
    value, headers = encode_seal(Seal("binance", "B", "", 1, 2, ""))
    seal = line.record(value, headers)
    other = [record._replace(partition=1) for record in line.send(trades(1))]
    items: list[Fetched] = in_runs([*one, *other, seal, *two])
    assert [(item.partition, isinstance(item, LogRecord)) for item in items] == [
        (0, False),
        (1, False),
        (0, True),
        (0, False),
    ]
    assert CHANNELS["trades"].table == "trades"
