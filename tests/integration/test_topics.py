"""Topics on a real broker: explicit, idempotent, and never with another number of partitions."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import ConfigResource, ResourceType

from k2ray.errors import BrokerUnavailable, OperatorNeeded
from k2ray.log import topics
from k2ray.log.client import admin_client
from k2ray.log.topics import ensure_topics, wanted_topics
from tests.support.kafka import TestBroker

pytestmark = pytest.mark.integration


def test_topics_are_made_once_with_everything_said(broker: TestBroker) -> None:
    settings = broker.settings(partitions=3, retention_s=7200, retention_bytes=123_456_789)
    ensure_topics(broker.bootstrap, settings)
    ensure_topics(broker.bootstrap, settings)
    admin = admin_client(broker.bootstrap, {})
    found = admin.list_topics(timeout=10).topics
    for name, partitions in wanted_topics(settings).items():
        assert len(found[name].partitions) == partitions
        resource = ConfigResource(ResourceType.TOPIC, name)
        config = admin.describe_configs([resource])[resource].result()
        assert config["retention.ms"].value == "7200000"
        assert config["retention.bytes"].value == "123456789"
        assert config["min.insync.replicas"].value == "1"
        assert config["cleanup.policy"].value == "delete"
        assert config["max.message.bytes"].value == str(topics.MAX_RECORD_BYTES)


def test_another_number_of_partitions_needs_a_person(broker: TestBroker) -> None:
    settings = broker.settings(partitions=3)
    ensure_topics(broker.bootstrap, settings)
    other = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"partitions": 4})})
    with pytest.raises(OperatorNeeded, match=r"trades\.binance has 3, not 4.*kafka\.partitions"):
        ensure_topics(broker.bootstrap, other)


def test_a_topic_that_somebody_made_meanwhile_is_looked_at(broker: TestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = broker.settings(partitions=3)
    ensure_topics(broker.bootstrap, settings)
    names = list(wanted_topics(settings))

    real = topics.admin_client

    class Blind:
        """A client whose first list of topics is as of before they were made."""

        def __init__(self, bootstrap: str, options: dict[str, str]) -> None:
            self.real = real(bootstrap, options)

        def list_topics(self, name: str | None = None, timeout: float = 10) -> object:
            found = self.real.list_topics(name, timeout=timeout) if name else self.real.list_topics(timeout=timeout)
            if name is None:
                for known in names:
                    found.topics.pop(known, None)
            return found

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

    monkeypatch.setattr(topics, "admin_client", Blind)
    ensure_topics(broker.bootstrap, settings)
    other = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"partitions": 5})})
    with pytest.raises(OperatorNeeded, match="has 3, not 5"):
        ensure_topics(broker.bootstrap, other)


def test_a_broker_that_is_away_is_worth_another_try(broker: TestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "ANSWER_TIMEOUT_S", 0.3)
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        ensure_topics("127.0.0.1:1", broker.settings())


def test_more_copies_than_brokers_is_refused_with_kafkas_reason(broker: TestBroker) -> None:
    settings = broker.settings(replication_factor=3)
    with pytest.raises(OperatorNeeded, match=r"(?i)replication"):
        ensure_topics(broker.bootstrap, settings)
