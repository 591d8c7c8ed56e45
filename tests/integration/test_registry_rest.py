"""A real registry with Confluent's API (Apicurio): our client, our rules, and other people's readers and writers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from k2ray.errors import IncompatibleSchema, MissingProgram, OperatorNeeded, RegistryUnavailable
from k2ray.lake.writer import TableWriter
from k2ray.layout import DataDir
from k2ray.log.producer import LogProducer
from k2ray.log.topics import dead_letter_topic
from k2ray.settings import Settings, Tls, Wire, load_settings
from k2ray.wire.avro_schema import SCHEMAS, shape_of
from k2ray.wire.compatibility import canonical
from k2ray.wire.encoder import AvroEncoder, publish_rows
from k2ray.wire.framing import subject_of
from k2ray.wire.registry_rest import RestRegistry
from k2ray.wire.schemas import Schemas, UnknownSchema
from tests.conftest import lacking
from tests.support.apicurio import Apicurio, running_apicurio
from tests.support.kafka import TestBroker, read_all
from tests.support.lake import lake_settings, open_table, stored_ids, trades
from tests.support.schemas import changed

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def apicurio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apicurio]:
    context = running_apicurio(os.environ, tmp_path_factory.mktemp("apicurio") / "log")
    try:
        running = context.__enter__()
    except MissingProgram as missing:
        lacking(str(missing))
    try:
        yield running
    finally:
        context.__exit__(None, None, None)


@pytest.fixture
def registry(apicurio: Apicurio) -> Iterator[RestRegistry]:
    made = RestRegistry(Wire(codec="avro", registry_url=apicurio.url), Tls())
    yield made
    made.close()


def ask(apicurio: Apicurio, path: str) -> Any:
    return httpx.get(f"{apicurio.url}{path}", trust_env=False).json()


def test_a_schema_is_registered_once_under_its_topics_own_subject(apicurio: Apicurio, registry: RestRegistry) -> None:
    """Trap 15: one subject was looked up and another one registered, so compatibility rules never applied."""
    before = set(ask(apicurio, "/subjects"))
    subject = subject_of("t15.crypto.trades.binance")
    number = registry.id_for(subject, SCHEMAS["trades"])
    assert registry.id_for(subject, SCHEMAS["trades"]) == number
    assert set(ask(apicurio, "/subjects")) - before == {"t15.crypto.trades.binance-value"}
    assert ask(apicurio, f"/subjects/{subject}/versions") == [1]
    assert shape(registry.by_id(number)) == shape(SCHEMAS["trades"])
    with pytest.raises(UnknownSchema, match="unknown schema: 987654"):
        registry.by_id(987654)


def shape(schema: str) -> Any:
    return shape_of(schema)


def test_backward_is_enforced_by_us_and_by_the_registry_whose_default_is_none(
    apicurio: Apicurio, registry: RestRegistry
) -> None:
    subject = subject_of("backward.crypto.trades.binance")
    registry.id_for(subject, SCHEMAS["trades"])
    assert ask(apicurio, f"/config/{subject}")["compatibilityLevel"] == "BACKWARD"
    worse = changed("trades", add="venue", default=False)
    with pytest.raises(IncompatibleSchema, match="venue"):
        registry.id_for(subject, worse)
    # Somebody else's client is refused as well, by the registry itself.
    answer = httpx.post(f"{apicurio.url}/subjects/{subject}/versions", json={"schema": worse}, trust_env=False)
    assert answer.status_code == 409
    newer = registry.id_for(subject, changed("trades", add="venue"))
    assert newer != registry.id_for(subject, SCHEMAS["trades"])
    assert len(registry.versions(subject)) == 2


def test_a_schema_that_was_registered_without_the_level_gets_it(apicurio: Apicurio, registry: RestRegistry) -> None:
    subject = subject_of("half.crypto.trades.binance")
    body = {"schema": canonical(SCHEMAS["trades"])}
    made = httpx.post(f"{apicurio.url}/subjects/{subject}/versions", json=body, trust_env=False)
    assert registry.id_for(subject, SCHEMAS["trades"]) == made.json()["id"]
    assert ask(apicurio, f"/config/{subject}")["compatibilityLevel"] == "BACKWARD"


def test_no_answer_and_a_refusal_are_told_apart(apicurio: Apicurio) -> None:
    away = RestRegistry(Wire(registry_url="http://127.0.0.1:9", registry_timeout_s=1), Tls())
    with pytest.raises(RegistryUnavailable, match="does not answer"):
        away.by_id(1)
    away.close()
    elsewhere = RestRegistry(Wire(registry_url=apicurio.url.replace("/ccompat/v7", "/nowhere")), Tls())
    with pytest.raises(OperatorNeeded, match=r"is wire\.registry_url right"):
        elsewhere.by_id(1)
    elsewhere.close()


class Road:
    """Avro from a producer through Kafka to the table, schemas from the real registry."""

    def __init__(self, broker: TestBroker, registry: RestRegistry, apicurio: Apicurio, folder: Path) -> None:
        made, self.topic = broker.with_topics()
        self.bootstrap, self.folder = broker.bootstrap, folder
        self.settings: Settings = load_settings(
            arguments={
                **lake_settings(folder).model_dump(mode="json"),
                "kafka": {"topic_prefix": made.kafka.topic_prefix, "bootstrap_servers": broker.bootstrap},
                "wire": {"codec": "avro", "registry_url": apicurio.url},
            },
            environ={},
        )
        self.encoder = AvroEncoder(Schemas(registry, 10))
        self.encoder.learn(self.topic, "trades")
        self.producer = LogProducer(broker.bootstrap, client_id="test", spool=None, settings=self.settings.kafka)

    def publish(self, first: int, last: int) -> None:
        publish_rows(self.producer, self.encoder, self.topic, 0, "trades", trades(range(first, last + 1)))
        assert self.producer.flush(20)

    def store(self) -> list[int]:
        writer = TableWriter(self.settings, DataDir(self.folder), "trades", self.bootstrap)
        try:
            assert writer.drain()
        finally:
            writer.close()
        return stored_ids(open_table(self.folder, 4))


@pytest.fixture
def road(broker: TestBroker, registry: RestRegistry, apicurio: Apicurio, tmp_path: Path) -> Iterator[Road]:
    made = Road(broker, registry, apicurio, tmp_path)
    yield made
    made.producer.close(5)


def test_avro_records_reach_the_table_and_poison_goes_to_the_dead_letters_alone(road: Road) -> None:
    road.publish(1, 300)
    road.producer.publish_each(road.topic, 0, [b"poison", b"\0\0\x7f\xff\xff1234"])
    road.publish(301, 600)
    assert road.store() == list(range(1, 601))
    letters = read_all(road.bootstrap, dead_letter_topic(road.settings.kafka.topic_prefix, "binance"), 2, timeout_s=5)
    assert [letter.value for letter in letters] == [b"poison", b"\0\0\x7f\xff\xff1234"]
    headers = [dict(letter.headers) for letter in letters]
    assert [header["source"].decode() for header in headers] == [f"{road.topic}[0]@300", f"{road.topic}[0]@301"]
    assert b"no Avro record" in headers[0]["reason"]
    assert b"unknown schema: 8388607" in headers[1]["reason"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_confluents_own_serializer_and_deserializer_understand_ours(road: Road, apicurio: Apicurio) -> None:
    """The contract with readers without Arrow, checked by an independent implementation of it, both ways."""
    avro = pytest.importorskip("confluent_kafka.schema_registry.avro", exc_type=ImportError)
    client_type = pytest.importorskip("confluent_kafka.schema_registry", exc_type=ImportError).SchemaRegistryClient
    from confluent_kafka.serialization import MessageField, SerializationContext

    client = client_type({"url": apicurio.url})
    context = SerializationContext(road.topic, MessageField.VALUE)
    road.publish(1, 3)
    values = [record.value for record in read_all(road.bootstrap, road.topic, 3)]
    read = avro.AvroDeserializer(client)
    rows = [read(value, context) for value in values]
    expected = trades(range(1, 4)).to_pylist()
    for row, wanted in zip(rows, expected, strict=True):
        assert {**row, "vendor_data": None} == {**wanted, "vendor_data": None}
        assert isinstance(row["price"], Decimal)
    write = avro.AvroSerializer(
        client, SCHEMAS["trades"], conf={"auto.register.schemas": False, "use.latest.version": True}
    )
    theirs = [
        write({**row, "source_sequence": 10 + at, "sequence_from": 9 + at}, context) for at, row in enumerate(rows)
    ]
    road.producer.publish_each(road.topic, 0, theirs)
    assert road.producer.flush(20)
    client.__exit__(None, None, None)
    assert road.store() == [1, 2, 3, 10, 11, 12]
