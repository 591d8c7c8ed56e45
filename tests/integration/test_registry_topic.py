"""The built-in registry on a real Kafka: what it keeps, what it refuses, and that its topic keeps it for ever."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType
from confluent_kafka.cimpl import NewTopic, Producer, TopicPartition

from k2ray.errors import BadInput, IncompatibleSchema, OperatorNeeded, RegistryUnavailable
from k2ray.settings import Kafka
from k2ray.wire.avro_schema import SCHEMAS
from k2ray.wire.registry_topic import TopicRegistry, schema_topic
from k2ray.wire.schemas import UnknownSchema
from tests.support.kafka import TestBroker
from tests.support.schemas import changed

pytestmark = pytest.mark.integration

SUBJECT = "market.crypto.trades.binance-value"


def registry(broker: TestBroker, prefix: str, **more: str) -> TopicRegistry:
    return TopicRegistry(broker.bootstrap, Kafka(topic_prefix=prefix), more.get("compatibility", "BACKWARD"))


def policy(broker: TestBroker, topic: str) -> str:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    return str(admin.describe_configs([resource])[resource].result()["cleanup.policy"].value)


def make_topic(broker: TestBroker, topic: str, **config: str) -> AdminClient:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    admin.create_topics([NewTopic(topic, 1, 1, config=config)])[topic].result()
    return admin


def test_schemas_survive_the_process_and_ids_stand_for_them_for_ever(broker: TestBroker) -> None:
    prefix = broker.prefix()
    first = registry(broker, prefix)
    trades = first.id_for(SUBJECT, SCHEMAS["trades"])
    assert first.id_for(SUBJECT, SCHEMAS["trades"]) == trades
    quotes = first.id_for("market.crypto.quotes.binance-value", SCHEMAS["quotes"])
    assert (trades, quotes) == (1, 2)
    newer = first.id_for(SUBJECT, changed("trades", add="venue"))
    first.close()
    second = registry(broker, prefix)
    assert second.id_for(SUBJECT, SCHEMAS["trades"]) == trades
    assert "venue" in second.by_id(newer)
    assert "venue" not in second.by_id(trades)
    assert len(second.versions(SUBJECT)) == 2
    with pytest.raises(UnknownSchema, match="unknown schema: 99"):
        second.by_id(99)
    second.close()


def test_an_incompatible_schema_is_refused_and_leaves_nothing_behind(broker: TestBroker) -> None:
    keeper = registry(broker, broker.prefix())
    keeper.id_for(SUBJECT, SCHEMAS["trades"])
    for worse, why in (
        (changed("trades", add="venue", default=False), "venue"),
        (changed("trades", scale=8), "scale 8"),
        (SCHEMAS["quotes"], "bid_price"),
    ):
        with pytest.raises(IncompatibleSchema, match=why):
            keeper.id_for(SUBJECT, worse)
    assert len(keeper.versions(SUBJECT)) == 1
    with pytest.raises(BadInput, match="not the subject of a topic's values"):
        keeper.id_for("market.crypto.trades.binance", SCHEMAS["trades"])
    keeper.close()


def test_two_that_register_at_once_never_give_one_id_to_two_schemas(broker: TestBroker) -> None:
    prefix = broker.prefix()
    keepers = [registry(broker, prefix) for _ in range(3)]
    keepers[0].versions(SUBJECT)  # the topic is there

    def register(number: int) -> tuple[int, str]:
        schema = changed("trades", add=f"field_{number}")
        for _ in range(20):
            try:
                return keepers[number].id_for(f"t{number}-value", schema), schema
            except RegistryUnavailable:
                continue  # fenced by another: ask again
        raise AssertionError("never got through")

    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(register, range(3)))
    assert len({number for number, _ in made}) == 3
    for keeper in keepers:
        for number, schema in made:
            field = schema[schema.index("field_") :][:7]
            assert field in keeper.by_id(number)
        keeper.close()


def test_a_schema_topic_was_trimmed_by_time(broker: TestBroker) -> None:
    """Trap 29: a schema topic with time-based deletion was trimmed after a day, which broke all serialisation."""
    prefix = broker.prefix()
    fresh = registry(broker, prefix)
    number = fresh.id_for(SUBJECT, SCHEMAS["trades"])
    fresh.close()
    topic = schema_topic(prefix)
    assert policy(broker, topic) == "compact"
    # Everything a key ever said is still there after compaction: each key is written once.
    again = registry(broker, prefix)
    assert "price" in again.by_id(number)
    again.close()


def test_a_schema_topic_that_would_be_trimmed_is_repaired(broker: TestBroker) -> None:
    """Trap 29, the topic made by somebody else with the broker's default policy."""
    prefix = broker.prefix()
    topic = schema_topic(prefix)
    make_topic(broker, topic, **{"cleanup.policy": "delete", "retention.ms": "86400000"})
    keeper = registry(broker, prefix)
    keeper.id_for(SUBJECT, SCHEMAS["trades"])
    keeper.close()
    assert policy(broker, topic) == "compact"


def test_a_schema_topic_that_was_trimmed_already_is_refused(broker: TestBroker) -> None:
    """Trap 29, too late: guessing which schema an old id stood for would read prices wrong."""
    prefix = broker.prefix()
    topic = schema_topic(prefix)
    admin = make_topic(broker, topic, **{"cleanup.policy": "delete"})
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for _ in range(3):
        producer.produce(topic, b"gone soon")
    producer.flush(10)
    producer.close()
    admin.delete_records([TopicPartition(topic, 0, 2)])[TopicPartition(topic, 0)].result()
    keeper = registry(broker, prefix)
    with pytest.raises(OperatorNeeded, match="has lost its records before 2"):
        keeper.by_id(1)
    keeper.close()


def test_kafka_away_is_no_answer(free_port: object) -> None:
    nobody = TopicRegistry(f"127.0.0.1:{free_port()}", Kafka(options={"socket.timeout.ms": "1000"}), "BACKWARD")  # type: ignore[operator]
    nobody_timeout = pytest.MonkeyPatch()
    nobody_timeout.setattr("k2ray.wire.registry_topic.ANSWER_TIMEOUT_S", 1.0)
    try:
        with pytest.raises(RegistryUnavailable, match="Kafka could not read schemas"):
            nobody.by_id(1)
    finally:
        nobody_timeout.undo()
        nobody.close()
