"""Records of one row each on a real broker: every one arrives once or more, in spite of a broker that dies."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from k2ray.errors import BrokerUnavailable
from k2ray.log.consumer import LogReader, Position
from k2ray.log.producer import LogProducer
from k2ray.log.records import RecordRun
from k2ray.log.spool import Spool
from k2ray.wire.codec import encode_rows
from tests.support.eventually import eventually
from tests.support.kafka import TestBroker, read_all
from tests.support.rows import trades

pytestmark = pytest.mark.integration

LARGE = 1 << 30


def values(first: int, last: int) -> list[bytes]:
    return [b"%06d" % number for number in range(first, last)]


def found(broker: TestBroker, topic: str, count: int) -> list[int]:
    records = read_all(broker.bootstrap, topic, count, timeout_s=3)
    assert all(not record.headers for record in records)
    return [int(record.value) for record in records]


def test_rows_arrive_in_order_and_are_counted(broker: TestBroker) -> None:
    settings, topic = broker.with_topics()
    producer = LogProducer(broker.bootstrap, client_id="rows", spool=None, settings=settings.kafka)
    for first in range(0, 5_000, 1_000):
        producer.publish_each(topic, 0, values(first, first + 1_000))
    assert producer.flush(30)
    stats = producer.stats()
    assert (stats.rows_delivered, stats.records_delivered, stats.bytes_delivered) == (5_000, 5_000, 30_000)
    assert (stats.rows_in_flight, stats.records_in_flight, stats.bytes_in_flight) == (0, 0, 0)
    assert producer.close(5)
    assert found(broker, topic, 5_000) == list(range(5_000))
    assert REGISTRY.get_sample_value("k2ray_produced_rows_total", {"topic": topic}) == 5_000


@pytest.mark.timeout(300)  # a JVM's start takes 3 CPU seconds, which is a minute on a machine with 30 waiting
def test_rows_survive_a_killed_broker_and_a_full_client(broker: TestBroker, tmp_path: Path) -> None:
    """What was under way fails and goes to the spool together; what comes meanwhile goes behind it."""
    settings, topic = broker.with_topics(delivery_timeout_s=1.5, options={"queue.buffering.max.messages": "2500"})
    producer = LogProducer(broker.bootstrap, client_id="killed", spool=Spool(tmp_path, LARGE), settings=settings.kafka)
    producer.publish_each(topic, 0, values(0, 1_000))
    assert producer.flush(20)
    broker.kill()
    try:
        producer.publish_each(topic, 0, values(1_000, 3_000))
        # More than the client's queue holds: the rest goes to the spool at once.
        producer.publish_each(topic, 0, values(3_000, 6_000))
        assert producer.stats().spool_records > 0
        eventually(lambda: (producer.poll(0.01), producer.stats().failures)[1] >= 2_000, "the deliveries failed")
        producer.publish_each(topic, 0, values(6_000, 7_000))
    finally:
        broker.broker.start()
    assert producer.flush(90)
    stats = producer.stats()
    assert (stats.spool_records, stats.rows_in_flight, stats.bytes_in_flight, stats.shed_records) == (0, 0, 0, 0)
    producer.publish_each(topic, 0, values(7_000, 7_100))
    assert producer.close(20)
    eventually(lambda: set(found(broker, topic, 7_100)) == set(range(7_100)), "all of them, at least once")


def test_without_a_spool_too_much_is_refused_and_nothing_taken(broker: TestBroker) -> None:
    settings, topic = broker.with_topics(queue_max_bytes=50_000)
    producer = LogProducer(broker.bootstrap, client_id="small", spool=None, settings=settings.kafka)
    with pytest.raises(BrokerUnavailable):
        producer.publish_each(topic, 0, values(0, 1_000))
    assert producer.stats().records_in_flight == 0
    producer.publish_each(topic, 0, values(0, 100))
    assert producer.close(20)
    assert found(broker, topic, 100) == list(range(100))


def test_runs_and_batches_of_one_partition_come_in_their_order(broker: TestBroker) -> None:
    settings, topic = broker.with_topics()
    producer = LogProducer(broker.bootstrap, client_id="mixed", spool=None, settings=settings.kafka)
    for first in (0, 100, 200):
        producer.publish_each(topic, 1, values(first, first + 100))
        producer.publish(topic, 1, *encode_rows("trades", trades(5)), 5)
    assert producer.close(20)
    reader = LogReader(broker.bootstrap)
    try:
        reader.assign({(topic, 1): Position(50)})
        items = []
        while sum(len(item.offsets) if isinstance(item, RecordRun) else 1 for item in items) < 253:
            items += reader.fetch(1_000, 20)
    finally:
        reader.close()
    seen: list[int] = []
    for item in items:
        if isinstance(item, RecordRun):
            assert [int(value) for value in item.values] == [at - at // 101 for at in item.offsets]
            assert min(item.timestamps_us) > 0
            seen += item.offsets
        else:
            assert item.offset in (100, 201, 302)
            seen.append(item.offset)
    assert seen == list(range(50, 303))
