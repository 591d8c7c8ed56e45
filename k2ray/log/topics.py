"""Topics: their names, and their creation with explicit partitions, retention and `min.insync.replicas`.

One topic a channel and exchange, `<prefix>.<asset_class>.<channel>.<exchange>`; dead letters of an exchange in
`<prefix>.dead_letter.<exchange>`. A topic's number of partitions is chosen once: an instrument's partition is a hash
modulo that number, so a topic with another number is an operator's decision, never silently accepted or grown.
"""

from __future__ import annotations

import time
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from k2ray.errors import BrokerUnavailable, OperatorNeeded
from k2ray.log.client import admin_client, map_error
from k2ray.model import CHANNELS
from k2ray.settings import Kafka, Settings

ASSET_CLASSES = {"binance": "crypto"}
"""Exchange -> asset class of everything that it lists."""

MAX_RECORD_BYTES = 8_388_608
"""Largest record of our topics: some 60,000 rows, far above what a feed gathers."""

DEAD_LETTER_PARTITIONS = 1
ANSWER_TIMEOUT_S = 15.0
# A new topic is known within 0.1 s; a broker that is fenced for a moment, on a machine at its limit, takes longer.
KNOWN_TIMEOUT_S = 60.0


def topic_name(prefix: str, asset_class: str, channel: str, exchange: str) -> str:
    """Return a channel's topic, for example `market.crypto.trades.binance`."""
    return f"{prefix}.{asset_class}.{channel}.{exchange}"


def dead_letter_topic(prefix: str, exchange: str) -> str:
    """Return the topic of what could not be read, for example `market.dead_letter.binance`."""
    return f"{prefix}.dead_letter.{exchange}"


def table_topics(settings: Settings, table: str) -> list[str]:
    """Return the topics whose rows go to `table`, of every exchange that is recorded, in a stable order."""
    return [
        topic_name(settings.kafka.topic_prefix, ASSET_CLASSES[name], channel.name, name)
        for name, exchange in sorted(settings.exchanges.enabled().items())
        for channel in CHANNELS.values()
        if channel.table == table and channel.name in exchange.channels
    ]


def wanted_topics(settings: Settings) -> dict[str, int]:
    """Return topic -> number of partitions of everything that these settings record, dead letters included."""
    kafka = settings.kafka
    tables = {channel.table for channel in CHANNELS.values()}
    wanted = {topic: kafka.partitions for table in sorted(tables) for topic in table_topics(settings, table)}
    for name in settings.exchanges.enabled():
        wanted[dead_letter_topic(kafka.topic_prefix, name)] = DEAD_LETTER_PARTITIONS
    return wanted


def topic_config(kafka: Kafka) -> dict[str, str]:
    """Return the configuration of a new topic. Nothing that matters is left to the broker's defaults."""
    return {
        "cleanup.policy": "delete",
        "compression.type": "producer",
        "max.message.bytes": str(MAX_RECORD_BYTES),
        "message.timestamp.type": "CreateTime",
        "min.insync.replicas": str(kafka.min_insync_replicas),
        "retention.bytes": str(kafka.retention_bytes),
        "retention.ms": str(kafka.retention_s * 1000),
        "unclean.leader.election.enable": "false",
    }


def ensure_topics(bootstrap: str, settings: Settings) -> None:
    """Create the topics that are missing; leave those that exist as they are.

    Raises:
        BrokerUnavailable: Kafka does not answer, or is short of brokers: repeat later.
        OperatorNeeded: A topic has another number of partitions, or may not be created.
    """
    wanted = wanted_topics(settings)
    admin = admin_client(bootstrap, settings.kafka.options)
    try:
        found = admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics
    except KafkaException as error:
        raise map_error(error, f"list the topics of {bootstrap}") from error
    _check_partitions({name: len(found[name].partitions) for name in wanted if name in found}, wanted)
    missing = [
        NewTopic(name, partitions, settings.kafka.replication_factor, config=topic_config(settings.kafka))
        for name, partitions in wanted.items()
        if name not in found
    ]
    if not missing:
        return
    for name, future in admin.create_topics(missing, request_timeout=ANSWER_TIMEOUT_S).items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                _check_again(bootstrap, settings, name, wanted[name])
            else:
                raise map_error(error, f"create topic {name}") from error
    wait_until_known(admin, {topic.topic for topic in missing})


def wait_until_known(admin: AdminClient, names: set[str]) -> None:
    """A topic is made before every part of the broker has heard of it; who reads its id next must not miss it."""
    deadline_s = time.monotonic() + KNOWN_TIMEOUT_S
    unknown = names
    while unknown:
        if time.monotonic() > deadline_s:
            raise BrokerUnavailable(f"Kafka does not know its new topics yet: {', '.join(sorted(unknown))}")
        unknown = {name for name, future in _describe(admin, unknown).items() if not _is_known(future)}
        if unknown:
            time.sleep(0.05)


def _describe(admin: AdminClient, names: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = admin.describe_topics(TopicCollection(sorted(names)), request_timeout=ANSWER_TIMEOUT_S)
    return found


def _is_known(future: Any) -> bool:
    try:
        return all(partition.leader is not None for partition in future.result().partitions)
    except KafkaException:
        return False


def _check_again(bootstrap: str, settings: Settings, name: str, partitions: int) -> None:
    """Somebody else created it just now: look at what they made."""
    try:
        metadata = admin_client(bootstrap, settings.kafka.options).list_topics(name, timeout=ANSWER_TIMEOUT_S)
    except KafkaException as error:
        raise map_error(error, f"look at topic {name}") from error
    if metadata.topics[name].error is not None:
        raise BrokerUnavailable(f"topic {name} is being created by somebody else")
    _check_partitions({name: len(metadata.topics[name].partitions)}, {name: partitions})


def _check_partitions(found: dict[str, int], wanted: dict[str, int]) -> None:
    odd = [f"{name} has {count}, not {wanted[name]}" for name, count in found.items() if count != wanted[name]]
    if odd:
        raise OperatorNeeded(
            f"partitions of existing topics: {'; '.join(odd)}. An instrument's partition depends on their number: set "
            "kafka.partitions to the topic's number, or kafka.topic_prefix to a new one"
        )
