"""The whole system with `wire.codec: avro`: exchange -> feed -> Kafka -> writer -> table, compared by ids."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from k2ray.log.consumer import LogReader, Position
from k2ray.log.producer import LogProducer
from k2ray.log.topics import table_topics
from k2ray.settings import Wire
from k2ray.wire.codec import Seal, encode_seal
from k2ray.wire.framing import schema_id_of
from k2ray.wire.registry import open_registry
from tests.support.arena import Arena, arena_settings
from tests.support.eventually import eventually
from tests.support.kafka import TestBroker
from tests.support.ray_cluster import SmallCluster
from tests.support.sim import start_sim

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def arena(ray: SmallCluster, broker: TestBroker, tmp_path: Path) -> Iterator[Arena]:
    with start_sim(tmp_path, rate=600) as sim:
        made = arena_settings(ray, tmp_path / "data", sim, broker.bootstrap, broker.prefix(), ("trades", "quotes"))
        settings = made.model_copy(update={"wire": Wire(codec="avro")})
        system = Arena(settings, sim, tables=("trades", "quotes"))
        try:
            system.start()
            system.all_running()
            yield system
        finally:
            system.stop()


def test_every_trade_is_one_avro_record_and_one_row_whoever_dies(arena: Arena) -> None:
    arena.more_commits("trades", rows=200)
    serializer = arena.actor("serializer")
    eventually(lambda: arena.actor("serializer")["detail"]["registered"] == 2, "both subjects are registered")

    # Without the serializer everybody goes on with what they know; the next one finds the same ids.
    os.kill(serializer["pid"], signal.SIGKILL)
    arena.more_commits("trades", rows=200)
    arena.running("serializer", after=serializer["generation"])
    # A new writer has to ask for the schema of what it reads, a new feed for the id of what it writes.
    for logical in ("writer:trades", "feed:binance:0"):
        before = arena.actor(logical)
        os.kill(before["pid"], signal.SIGKILL)
        arena.running(logical, after=before["generation"])
    # Poison between the others, and a seal, which stays Arrow.
    topic = table_topics(arena.settings, "trades")[0]
    producer = LogProducer(arena.bootstrap, client_id="test", spool=None, settings=arena.settings.kafka)
    producer.publish_each(topic, 0, [b"poison"])
    producer.publish(topic, 0, *encode_seal(Seal("binance", "NEVERTRADED", "", 3, 9, "test")), 0)
    assert producer.close(10)
    arena.more_commits("trades", rows=200)
    eventually(lambda: arena.actor("writer:trades")["detail"]["dead_letters"] == 1, "the poison is a dead letter")

    assert [verdict for verdict in arena.verify() if not verdict.exact or verdict.stored < 400] == []
    avro, ids = count_avro(arena, topic)
    assert avro > 400
    registry = open_registry(arena.settings, arena.bootstrap)
    assert [len(registry.versions(f"{name}-value")) for name in table_topics(arena.settings, "trades")] == [1]
    assert all("quantity" in registry.by_id(number) for number in ids)
    registry.close()


def count_avro(arena: Arena, topic: str) -> tuple[int, set[int]]:
    """Return how many records of the topic are framed Avro, and their schema ids."""
    reader = LogReader(arena.bootstrap)
    found, ids = 0, set()
    try:
        for partition in range(arena.settings.kafka.partitions):
            low, end = reader.watermarks((topic, partition))
            reader.assign({(topic, partition): Position(low)})
            while low < end:
                for record in reader.poll(5_000, 5.0):
                    low = record.offset + 1
                    if not record.headers and record.value != b"poison":
                        found += 1
                        ids.add(schema_id_of(record.value))
    finally:
        reader.close()
    return found, ids
