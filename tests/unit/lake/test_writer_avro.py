"""The writer with Avro records: poison goes alone, and a registry that is away is waited for, never guessed about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from k2ray.errors import BrokerUnavailable, RegistryUnavailable
from k2ray.lake.writer import TableWriter
from k2ray.layout import DataDir
from k2ray.settings import Wire
from k2ray.wire.encoder import AvroEncoder, encoder_for
from k2ray.wire.schemas import Schemas
from tests.support.eventually import eventually
from tests.support.lake import TRADES_TOPIC, MemoryReader, lake_settings, trades
from tests.support.schemas import MemorySchemas
from tests.support.writer_desk import FIRST, SECOND, Desk


class AvroDesk(Desk):
    """A desk whose log holds Avro records."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.registry = MemorySchemas()
        encoder = encoder_for(Wire(codec="avro"), self.registry)
        assert isinstance(encoder, AvroEncoder)
        encoder.learn(TRADES_TOPIC, "trades")
        self.encoder = encoder

    def publish(self, first: int, last: int, key: tuple[str, int] = FIRST, symbol: str = "BTCUSDT") -> None:
        for value in self.encoder.encode(TRADES_TOPIC, "trades", trades(range(first, last + 1), symbol)).values:
            self.log.append(key, value, [])

    def avro_writer(self, **more: object) -> TableWriter:
        reader = MemoryReader(self.log, more.pop("max_records", None))  # type: ignore[arg-type]
        settings = lake_settings(self.folder, **more)  # type: ignore[arg-type]
        schemas = Schemas(self.registry, 10)
        letters = self.letters
        writer = TableWriter(
            settings,
            DataDir(self.folder),
            "trades",
            "",
            reader=reader,
            letters=lambda: letters,
            schemas=schemas,
        )
        self._writers.append(writer)
        return writer


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[AvroDesk]:
    made = AvroDesk(tmp_path)
    yield made
    made.close()


def test_every_record_becomes_its_row(desk: AvroDesk) -> None:
    desk.publish(1, 500)
    desk.publish(1, 300, SECOND, "ETHUSDT")
    writer = desk.avro_writer(max_records=64)
    assert writer.drain()
    assert desk.ids() == sorted([*range(1, 501), *range(1, 301)])
    status = writer.status()
    assert (status.records, status.rows_committed, status.duplicates) == (800, 800, 0)
    assert status.offsets[TRADES_TOPIC] == [500, 300]


def test_records_that_came_twice_are_stored_once(desk: AvroDesk) -> None:
    desk.publish(1, 100)
    desk.publish(51, 150)
    writer = desk.avro_writer()
    assert writer.drain()
    assert desk.ids() == list(range(1, 151))
    assert writer.status().duplicates == 50


def test_a_poison_record_goes_to_the_dead_letters_alone_with_its_offset(desk: AvroDesk) -> None:
    """Traps 2 and 3: neither its neighbours nor the reason may be lost with it."""
    desk.publish(1, 3)
    good = desk.log.partitions[FIRST][0][0]
    poison = [b"", b"\x01garbage", good[:-4], good + b"x", b"\0\0\0\0\x2a" + good[5:]]
    for number, value in enumerate(poison):
        desk.log.append(FIRST, value, [])
        desk.publish(4 + number, 4 + number)
    writer = desk.avro_writer()
    assert writer.drain()
    assert desk.ids() == list(range(1, 9))
    assert [raw for _, raw, *_ in desk.letters.letters] == poison
    assert [source for *_, source, _ in desk.letters.letters] == [f"{TRADES_TOPIC}[0]@{at}" for at in (3, 5, 7, 9, 11)]
    reasons = [reason for _, _, reason, *_ in desk.letters.letters]
    wanted = ("no Avro record: 0", "its first byte is 1", "ends inside of", "bytes after", "unknown schema: 42")
    assert all(part in reason for part, reason in zip(wanted, reasons, strict=True))


def test_nothing_is_committed_past_a_poison_record_before_it_is_delivered(desk: AvroDesk) -> None:
    """Trap 3: the offsets of records that were only logged were committed."""
    desk.publish(1, 5)
    desk.log.append(FIRST, b"poison", [])
    desk.letters.away = True
    writer = desk.avro_writer()
    with pytest.raises(BrokerUnavailable):
        writer.drain()
    assert desk.ids() == []
    desk.letters.away = False
    assert writer.drain()
    assert desk.ids() == [1, 2, 3, 4, 5]
    assert len(desk.letters.letters) == 1


def test_a_registry_that_is_away_makes_no_record_poison_and_loses_none(desk: AvroDesk) -> None:
    """An id that nobody can explain now is not an unknown id: the records wait, and all of them are stored."""
    writer = desk.avro_writer()
    writer.position()
    desk.publish(1, 50)
    desk.registry.away = True
    for number in range(4):
        with pytest.raises(RegistryUnavailable):
            writer.step(0)
        desk.publish(51 + 10 * number, 60 + 10 * number)
    assert desk.letters.letters == []
    assert "RegistryUnavailable" in str(writer.status().trouble)
    desk.registry.away = False
    assert writer.drain()
    assert desk.ids() == list(range(1, 91))
    assert desk.letters.letters == []


def test_a_schema_that_is_known_is_never_asked_for_again(desk: AvroDesk) -> None:
    desk.publish(1, 10)
    writer = desk.avro_writer()
    assert writer.drain()
    asked = desk.registry.asked
    desk.registry.away = True
    desk.publish(11, 40)
    assert writer.drain()
    assert desk.ids() == list(range(1, 41))
    assert desk.registry.asked == asked


def test_what_was_read_before_is_committed_while_the_registry_is_away(desk: AvroDesk) -> None:
    desk.publish(1, 10)
    writer = desk.avro_writer(interval_s=0.01)
    while not writer.status().records:
        writer.step(0.01)
    other = desk.registry.id_for("t-value", desk.registry.kept[1].replace('"Trade"', '"Deal"'))
    desk.registry.away = True
    value = desk.encoder.encode(TRADES_TOPIC, "trades", trades([11])).values[0]
    desk.log.append(FIRST, b"\0" + other.to_bytes(4, "big") + value[5:], [])

    def committed() -> bool:
        with pytest.raises(RegistryUnavailable):
            writer.step(0)
        return writer.status().commits > 0

    eventually(committed, "what was read before is committed")
    assert desk.ids() == list(range(1, 11))
    desk.registry.away = False
    assert writer.drain()
    assert desk.ids() == list(range(1, 12))


def test_an_impossible_time_is_one_dead_letter_with_its_own_offset(desk: AvroDesk) -> None:
    desk.publish(1, 2)
    late = trades([3], start_us=9_000_000_000_000_000)
    (value,) = desk.encoder.encode(TRADES_TOPIC, "trades", late).values
    desk.log.append(FIRST, value, [])
    desk.publish(4, 4)
    writer = desk.avro_writer()
    assert writer.drain()
    assert desk.ids() == [1, 2, 4]
    ((_, raw, reason, source, _),) = desk.letters.letters
    assert (raw, source) == (value, f"{TRADES_TOPIC}[0]@2")
    assert "event time outside the years" in reason
