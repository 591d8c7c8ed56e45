"""Producing to a real broker that dies: whatever was published arrives, in spite of everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from prometheus_client import REGISTRY

from k2ray.errors import BrokerUnavailable
from k2ray.log.client import admin_client
from k2ray.log.consumer import LogRecord
from k2ray.log.producer import LogProducer
from k2ray.log.spool import Spool
from k2ray.log.spool_file import read_records
from k2ray.log.topics import MAX_RECORD_BYTES, dead_letter_topic
from k2ray.settings import Kafka
from k2ray.wire.codec import Headers, encode_rows
from tests.support.eventually import eventually
from tests.support.kafka import TestBroker, read_all
from tests.support.rows import trades

pytestmark = pytest.mark.integration

LARGE = 1 << 30
VALUE, HEADERS = encode_rows("trades", trades(20))


def numbered(number: int) -> Headers:
    return [*HEADERS, ("n", str(number).encode())]


def numbers(records: list[LogRecord]) -> list[int]:
    return [int(dict(record.headers)["n"]) for record in records]


def publish(producer: LogProducer, topic: str, first: int, last: int, *, pause_s: float = 0.0) -> None:
    for number in range(first, last):
        producer.publish(topic, 0, VALUE, numbered(number), rows=20)
        producer.poll(pause_s)


def read_until(broker: TestBroker, topic: str, wanted: set[int]) -> list[int]:
    """Return what is in the topic once all of `wanted` is."""
    return eventually(
        lambda: (
            found
            if wanted <= set(found := numbers(read_all(broker.bootstrap, topic, len(wanted), timeout_s=1.5)))
            else None
        ),
        f"{len(wanted)} records in {topic}",
    )


@pytest.mark.timeout(300)  # a JVM's start takes 3 CPU seconds, which is a minute on a machine with 30 waiting
def test_a_killed_broker_costs_nothing_that_was_published(broker: TestBroker, tmp_path: Path) -> None:
    """kill -9 under load: shorter than the delivery timeout and longer, then straight sending again."""
    settings, topic = broker.with_topics(delivery_timeout_s=1.5)
    spool = Spool(tmp_path, LARGE)
    producer = LogProducer(broker.bootstrap, client_id="kill", spool=spool, settings=settings.kafka)
    publish(producer, topic, 0, 300)
    assert producer.flush(20)
    broker.kill()
    try:
        publish(producer, topic, 300, 1000, pause_s=0.004)
        eventually(lambda: (producer.poll(0.01), producer.stats().failures)[1], "the delivery timeout has passed")
        assert producer.stats().spooling
        assert producer.stats().spool_records > 0
    finally:
        broker.broker.start()
    publish(producer, topic, 1000, 1300, pause_s=0.001)
    assert producer.flush(90)
    stats = producer.stats()
    assert (stats.spool_records, stats.spool_bytes, stats.records_in_flight, stats.shed_records) == (0, 0, 0, 0)
    assert not stats.spooling
    assert producer.close(5)
    found = read_until(broker, topic, set(range(1300)))
    assert set(found) == set(range(1300))  # the order is not promised: what the spool held comes later
    assert REGISTRY.get_sample_value("k2ray_produced_rows_total", {"topic": topic}) >= 1300 * 20  # type: ignore[operator]
    assert REGISTRY.get_sample_value("k2ray_produce_failures_total", {"topic": topic}) >= 1  # type: ignore[operator]


def test_the_next_process_sends_what_the_spool_holds(broker: TestBroker, tmp_path: Path) -> None:
    """The producer ends while the broker is away; its successor sends first what it left, in order."""
    settings, topic = broker.with_topics(delivery_timeout_s=1)
    away = LogProducer("127.0.0.1:1", client_id="away", spool=Spool(tmp_path, LARGE), settings=settings.kafka)
    publish(away, topic, 0, 50)
    assert REGISTRY.get_sample_value("k2ray_produce_queue_bytes", {"client": "away"}) >= len(VALUE)  # type: ignore[operator]
    began = time.monotonic()
    assert not away.close(0.2)
    assert time.monotonic() - began < 5
    assert not away.close(0.2)

    spool = Spool(tmp_path, LARGE)
    assert spool.records == 50
    patient = settings.kafka.model_copy(update={"delivery_timeout_s": 30.0})  # or a slow broker changes the order
    producer = LogProducer(broker.bootstrap, client_id="back", spool=spool, settings=patient)
    publish(producer, topic, 50, 60)
    assert producer.close(20)
    assert numbers(read_all(broker.bootstrap, topic, 60)) == list(range(60))


def produce_for_ever(bootstrap: str, topic: str, folder: str, kafka: str, count: object) -> None:
    producer = LogProducer(
        bootstrap,
        client_id="victim",
        spool=Spool(Path(folder), LARGE),
        settings=Kafka.model_validate_json(kafka),
    )
    number = 0
    while True:
        producer.publish(topic, 0, VALUE, numbered(number), rows=20)
        number += 1
        producer.poll(0.001)
        if producer.stats().spool_records == number:
            count.value = number  # type: ignore[attr-defined]


def test_a_producer_killed_while_spooling_loses_nothing_that_was_spooled(broker: TestBroker, tmp_path: Path) -> None:
    settings, topic = broker.with_topics(delivery_timeout_s=1)
    context = multiprocessing.get_context("spawn")
    count = context.Value("l", 0)
    child = context.Process(
        target=produce_for_ever,
        args=("127.0.0.1:1", topic, str(tmp_path), settings.kafka.model_dump_json(), count),
    )
    child.start()
    eventually(lambda: count.value > 500, "it spools")
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    least = count.value

    spool = Spool(tmp_path, LARGE)
    assert spool.records >= least
    producer = LogProducer(broker.bootstrap, client_id="heir", spool=spool, settings=settings.kafka)
    assert producer.close(20)
    assert set(range(least)) <= set(numbers(read_all(broker.bootstrap, topic, least)))


def test_a_full_queue_goes_to_the_spool_and_comes_back_in_order(broker: TestBroker, tmp_path: Path) -> None:
    settings, topic = broker.with_topics(queue_max_bytes=20 * len(VALUE))
    spool = Spool(tmp_path, LARGE)
    producer = LogProducer(broker.bootstrap, client_id="full", spool=spool, settings=settings.kafka)
    for number in range(200):  # without poll: no delivery is looked at, so the queue stays full
        producer.publish(topic, 0, VALUE, numbered(number), rows=20)
    stats = producer.stats()
    assert stats.records_in_flight == 20
    assert stats.spool_records == 180
    assert stats.spooling
    assert producer.close(20)
    assert numbers(read_all(broker.bootstrap, topic, 200)) == list(range(200))


def test_over_the_spools_bound_rows_are_counted_as_shed(tmp_path: Path) -> None:
    """Trap 9: what is given up is counted, by topic."""
    spool = Spool(tmp_path, 50_000)
    producer = LogProducer(
        "127.0.0.1:1", client_id="shed", spool=spool, settings=Kafka(queue_max_bytes=1, delivery_timeout_s=1)
    )
    for number in range(50):
        producer.publish("shed.crypto.trades.binance", 0, VALUE, numbered(number), rows=20)
    stats = producer.stats()
    assert stats.shed_records > 0
    assert stats.shed_rows == 20 * stats.shed_records
    assert stats.shed_records + stats.spool_records == 50
    shed = REGISTRY.get_sample_value("k2ray_shed_rows_total", {"topic": "shed.crypto.trades.binance"})
    assert shed == stats.shed_rows
    producer.poll()
    assert REGISTRY.get_sample_value("k2ray_spool_bytes", {"client": "shed"}) == stats.spool_bytes
    assert not producer.close(0)


def test_a_record_the_broker_refuses_does_not_block_those_behind_it(broker: TestBroker, tmp_path: Path) -> None:
    settings, topic = broker.with_topics(options={"compression.type": "none"})
    producer = LogProducer(broker.bootstrap, client_id="large", spool=Spool(tmp_path, LARGE), settings=settings.kafka)
    with pytest.raises(ValueError, match="bytes"):
        producer.publish(topic, 0, bytes(MAX_RECORD_BYTES), numbered(0), rows=1)
    # A broker of somebody else may have a lower limit than the topics we make.
    admin = admin_client(broker.bootstrap, {})
    entry = ConfigEntry("max.message.bytes", "2000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result()

    def refused() -> int:  # the new limit takes a moment to reach the broker's log
        producer.publish(topic, 0, bytes(5000), numbered(1), rows=1)
        producer.flush(20)
        return producer.stats().refused

    assert eventually(refused, "the broker refuses it") == 1
    producer.publish(topic, 0, b"small", numbered(2), rows=1)
    assert producer.close(20)
    assert producer.stats().shed_records == 0
    arrived = producer.stats().records_delivered
    assert numbers(read_all(broker.bootstrap, topic, arrived))[-1] == 2
    (kept,) = tmp_path.glob("slot-0/refused/*.arrow")
    assert [record.value for record in read_records(kept)] == [bytes(5000)]


def test_a_dead_letter_keeps_its_raw_bytes_and_its_story(broker: TestBroker, tmp_path: Path) -> None:
    """Trap 3: undecodable records were skipped and committed; none was in the dead-letter file."""
    settings, _ = broker.with_topics()
    raw = b'{"e":"trade","t":\xff}'
    producer = LogProducer(broker.bootstrap, client_id="dead", spool=None, settings=settings.kafka)
    producer.dead_letter("binance", raw, "not UTF-8", source="feed:binance:0", at_us=1_790_000_000_000_000)
    producer.dead_letter("binance", bytes(MAX_RECORD_BYTES), "x" * 9000, source="t[0]@5", at_us=1)
    assert producer.close(20)
    first, second = read_all(broker.bootstrap, dead_letter_topic(settings.kafka.topic_prefix, "binance"), 2)
    assert first.value == raw
    assert dict(first.headers) == {
        "k2ray-kind": b"dead_letter",
        "exchange": b"binance",
        "reason": b"not UTF-8",
        "source": b"feed:binance:0",
        "at_us": b"1790000000000000",
    }
    assert dict(second.headers)["truncated_from_bytes"] == str(MAX_RECORD_BYTES).encode()
    for source in ("feed", "t"):
        labels = {"exchange": "binance", "source": source, "cause": "malformed"}
        assert (REGISTRY.get_sample_value("k2ray_dead_letters_total", labels) or 0) >= 1
    assert REGISTRY.get_sample_value("k2ray_produce_seconds_count", {"client": "dead"}) == 2


def test_without_a_spool_the_caller_is_told(broker: TestBroker) -> None:
    """The writer's dead letters: it must know that they arrived before it commits past them."""
    settings, topic = broker.with_topics(queue_max_bytes=3 * len(VALUE), delivery_timeout_s=1)
    producer = LogProducer("127.0.0.1:1", client_id="none", spool=None, settings=settings.kafka)
    publish(producer, topic, 0, 3)
    with pytest.raises(BrokerUnavailable, match="wait for Kafka"):
        producer.publish(topic, 0, VALUE, HEADERS, rows=20)
    assert not producer.flush(0.2)
    assert not producer.close(0.1)


def test_without_a_spool_failed_records_are_sent_again(broker: TestBroker) -> None:
    settings, topic = broker.with_topics(delivery_timeout_s=1)
    producer = LogProducer(broker.bootstrap, client_id="again", spool=None, settings=settings.kafka)
    pid = broker.broker.start().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        publish(producer, topic, 0, 5)
        eventually(lambda: (producer.poll(0.05), producer.stats().failures)[1], "deliveries have failed")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert producer.close(30)
    assert set(numbers(read_all(broker.bootstrap, topic, 5))) == set(range(5))
