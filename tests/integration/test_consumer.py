"""Reading a real broker: from given offsets, in batches, and loud about what the log has lost."""

from __future__ import annotations

import time

import pytest
from confluent_kafka import TopicPartition

from k2ray.errors import BrokerUnavailable
from k2ray.log.client import admin_client
from k2ray.log.consumer import LogReader, LogRecord, OffsetLost, Position
from k2ray.log.lag import LagWatch
from k2ray.log.producer import LogProducer
from k2ray.log.topics import ensure_topics
from k2ray.settings import Settings
from k2ray.wire.codec import encode_rows
from tests.support.eventually import eventually
from tests.support.kafka import TestBroker
from tests.support.rows import trades

pytestmark = pytest.mark.integration

VALUE, HEADERS = encode_rows("trades", trades(500))


def fill(broker: TestBroker, settings: Settings, topic: str, records: int, partition: int = 0) -> None:
    producer = LogProducer(broker.bootstrap, client_id="fill", spool=None, settings=settings.kafka)
    for number in range(records):
        producer.publish(topic, partition, VALUE, [*HEADERS, ("n", str(number).encode())], rows=500)
    assert producer.close(30)


def read(reader: LogReader, count: int) -> list[LogRecord]:
    records: list[LogRecord] = []
    deadline = time.monotonic() + 30
    while len(records) < count and time.monotonic() < deadline:
        records += reader.poll(1000, 0.5)
    return records


def test_reading_starts_where_it_is_told_and_says_where_it_is(broker: TestBroker) -> None:
    settings, topic = broker.with_topics()
    fill(broker, settings, topic, 30)
    fill(broker, settings, topic, 3, partition=2)
    reader = LogReader(broker.bootstrap)
    reader.assign({(topic, 0): Position(10, 0), (topic, 2): Position(0)})
    records = read(reader, 23)
    assert [record.offset for record in records if record.partition == 0] == list(range(10, 30))
    assert [record.offset for record in records if record.partition == 2] == [0, 1, 2]
    first = records[0]
    assert (first.topic, first.value, first.headers[:2]) == (topic, VALUE, HEADERS)
    assert first.leader_epoch is not None
    assert abs(first.timestamp_us - time.time() * 1e6) < 60e6
    assert reader.watermarks((topic, 0)) == (0, 30)
    assert reader.cached_end((topic, 0)) == 30
    assert reader.poll(10, 0.05) == []
    assert len(reader.poll(10_000, 0)) == 0
    # Another assignment forgets the first.
    reader.assign({(topic, 0): Position(29, first.leader_epoch)})
    assert [record.offset for record in read(reader, 1)] == [29]
    reader.close()
    reader.close()


def test_a_poll_returns_at_once_what_is_there(broker: TestBroker) -> None:
    """Waiting the whole timeout for a full batch would add it to every row's age."""
    settings, topic = broker.with_topics()
    reader = LogReader(broker.bootstrap)
    reader.assign({(topic, 0): Position(0)})
    fill(broker, settings, topic, 1)
    began = time.monotonic()
    assert len(reader.poll(1000, 30)) == 1
    assert time.monotonic() - began < 15
    reader.close()


def test_records_are_read_in_batches_not_one_by_one(broker: TestBroker) -> None:
    """Trap 24: 45 us a record to read, 8 us a row to build. A loose bound that one call a row could never meet."""
    settings, topic = broker.with_topics()
    fill(broker, settings, topic, 1000)
    reader = LogReader(broker.bootstrap)
    reader.assign({(topic, 0): Position(0)})
    own, polls, records = time.process_time(), 0, 0
    while records < 1000:
        records += len(reader.poll(500, 5))
        polls += 1
    cpu_s = time.process_time() - own
    reader.close()
    assert polls < 200
    assert cpu_s / (records * 500) < 2e-6, f"{cpu_s:.2f} CPU s for {records * 500} rows"


def test_retention_that_passed_us_is_not_skipped_silently(broker: TestBroker) -> None:
    settings, topic = broker.with_topics()
    fill(broker, settings, topic, 20)
    admin = admin_client(broker.bootstrap, {})
    (deleted,) = admin.delete_records([TopicPartition(topic, 0, 12)]).values()
    assert deleted.result().low_watermark == 12
    reader = LogReader(broker.bootstrap)
    reader.assign({(topic, 0): Position(5)})
    with pytest.raises(OffsetLost, match=r"does not have offset 5: it has \[12, 20\)") as raised:
        read(reader, 1)
    lost = raised.value
    assert (lost.key, lost.wanted, lost.low, lost.high) == ((topic, 0), 5, 12, 20)
    reader.assign({(topic, 0): Position(12)})
    assert read(reader, 1)[0].offset == 12
    reader.close()


def test_a_log_that_lost_its_end_is_not_waited_for(broker: TestBroker) -> None:
    """A position beyond the end is what a power cut leaves behind: acknowledged records are gone."""
    settings, topic = broker.with_topics()
    fill(broker, settings, topic, 5)
    reader = LogReader(broker.bootstrap)
    reader.assign({(topic, 0): Position(9)})
    with pytest.raises(OffsetLost) as raised:
        read(reader, 1)
    assert (raised.value.wanted, raised.value.low, raised.value.high) == (9, 0, 5)
    # The very end is a good position.
    reader.assign({(topic, 0): Position(5)})
    assert reader.poll(10, 0.3) == []
    reader.close()


def test_one_lost_partition_does_not_take_the_others_records_with_it(broker: TestBroker) -> None:
    settings, topic = broker.with_topics()
    fill(broker, settings, topic, 5)
    fill(broker, settings, topic, 5, partition=1)
    reader = LogReader(broker.bootstrap)
    reader.assign({(topic, 0): Position(99), (topic, 1): Position(0)})
    got: list[int] = []
    losses = 0
    deadline = time.monotonic() + 30
    while (len(got) < 5 or not losses) and time.monotonic() < deadline:
        try:
            got += [record.offset for record in reader.poll(100, 0.2)]
        except OffsetLost:
            losses += 1
    assert (got, losses) == ([0, 1, 2, 3, 4], 1)
    reader.close()


def test_a_cluster_and_its_topics_are_told_apart_by_their_ids(broker: TestBroker) -> None:
    _, topic = broker.with_topics(partitions=3)
    reader = LogReader(broker.bootstrap)
    before = reader.cluster([topic, "never-made"])
    assert before.cluster_id == broker.broker.start().cluster_id
    assert list(before.topics) == [topic]
    assert before.topics[topic].partitions == 3

    admin = admin_client(broker.bootstrap, {})
    admin.delete_topics([topic])[topic].result()
    eventually(lambda: not reader.cluster([topic]).topics, "the topic is gone")
    settings = Settings(kafka={"topic_prefix": topic.split(".")[0], "partitions": 3})  # type: ignore[arg-type]
    ensure_topics(broker.bootstrap, settings)
    assert reader.cluster([topic]).topics[topic].topic_id != before.topics[topic].topic_id
    reader.close()


def test_no_broker_is_said_to_be_away(broker: TestBroker) -> None:
    reader = LogReader("127.0.0.1:1")
    with pytest.raises(BrokerUnavailable):
        reader.cluster([], timeout_s=0.3)
    with pytest.raises(BrokerUnavailable):
        reader.watermarks(("t", 0), timeout_s=0.3)
    reader.assign({("t", 0): Position(0)})
    assert reader.poll(10, 0.2) == []
    eventually(lambda: not reader.poll(10, 0.05) and not reader.reachable, "the brokers are known to be down")
    reader.close()


def test_lag_is_known_from_fetches(broker: TestBroker) -> None:
    """Trap 22 against a real broker: after the first fetch nobody is asked any more."""
    settings, topic = broker.with_topics()
    fill(broker, settings, topic, 10)
    reader = LogReader(broker.bootstrap)
    watch = LagWatch(reader)
    reader.assign({(topic, 0): Position(0)})
    assert watch.behind({(topic, 0): 4}) == {(topic, 0): 6}
    read(reader, 10)
    asked: list[object] = []
    reader.watermarks = lambda *arguments, **more: asked.append(arguments)  # type: ignore[method-assign,assignment]
    for offset in range(10):
        assert watch.behind({(topic, 0): offset}) == {(topic, 0): 10 - offset}
    assert asked == []
    reader.close()
