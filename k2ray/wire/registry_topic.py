"""The built-in registry: schemas in a compacted topic of one partition, `<prefix>.schemas`.

A record's key is its subject and version, its value the schema and its id; nothing is ever overwritten, so compaction
removes nothing and the topic holds all of it for ever. Who registers:

1. takes the one transactional id of the prefix, which fences any other that registers;
2. reads the topic to its end: nobody else can add to it now;
3. checks, and writes the new version in a transaction, which counts only once it is committed.

So ids and versions are dense, and two that register at once cannot both believe that they were first. An id that is not
known after reading to the end does not exist: whoever used it had it from here.

A topic with another cleanup policy would lose schemas with time (and all records written with them): it is set to
compact where that may still help, and refused where something is gone already.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its public names, without an __all__
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

from k2ray.errors import BrokerUnavailable, K2rayError, OperatorNeeded, RegistryUnavailable
from k2ray.log.client import admin_client, client_config, map_error
from k2ray.log.topics import wait_until_known
from k2ray.logs import get_logger
from k2ray.settings import Kafka
from k2ray.wire.compatibility import canonical
from k2ray.wire.registry import check_compatible, check_subject
from k2ray.wire.schemas import UnknownSchema

_log = get_logger(__name__)

ANSWER_TIMEOUT_S = 15.0
_POLL_S = 0.2
# A topic that was made a moment ago is not known to every part of the broker yet.
_UNKNOWN = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}  # noqa: SLF001
_PARTITION = 0


def schema_topic(prefix: str) -> str:
    """Return the topic of the built-in registry, for example `market.schemas`."""
    return f"{prefix}.schemas"


class _Key(msgspec.Struct):
    subject: str
    version: int


class _Value(msgspec.Struct):
    id: int
    schema: str


@dataclass
class _State:
    """What the topic says, up to `next`."""

    next: int
    by_id: dict[int, str]
    subjects: dict[str, list[int]]


class TopicRegistry:
    """Schemas in Kafka; threads may share it.

    Args:
        bootstrap: Kafka's address.
        kafka: Prefix, replicas, options.
        compatibility: `wire.compatibility`.
    """

    def __init__(self, bootstrap: str, kafka: Kafka, compatibility: str) -> None:
        self.topic = schema_topic(kafka.topic_prefix)
        self._bootstrap = bootstrap
        self._kafka = kafka
        self._level = compatibility
        self._lock = threading.Lock()
        self._state = _State(0, {}, {})
        self._consumer: Consumer | None = None
        self._ready = False

    def by_id(self, schema_id: int) -> str:
        """Return the schema of an id.

        Raises:
            UnknownSchema: The topic does not hold it.
            RegistryUnavailable: Kafka does not answer.
        """
        with self._lock, _Mapped("read schemas"):
            if schema_id not in self._state.by_id:
                self._read_to_end()
            found = self._state.by_id.get(schema_id)
        if found is None:
            raise UnknownSchema(f"unknown schema: {schema_id} is not in {self.topic}")
        return found

    def id_for(self, subject: str, schema: str) -> int:
        """Return the schema's id under its subject, registered there if it is new and compatible.

        Raises:
            BadInput: That is no subject of ours.
            IncompatibleSchema: The subject's schemas do not allow it.
            OperatorNeeded: The topic has lost schemas, or may not be made.
            RegistryUnavailable: Kafka does not answer, or somebody else registers.
        """
        check_subject(subject)
        wanted = canonical(schema)
        with self._lock, _Mapped("register a schema"):
            self._read_to_end()
            known = self._known(subject, wanted)
            return self._register(subject, wanted) if known is None else known

    def versions(self, subject: str) -> list[str]:
        """Return the subject's schemas, oldest first."""
        with self._lock, _Mapped("read schemas"):
            self._read_to_end()
            return [self._state.by_id[number] for number in self._state.subjects.get(subject, [])]

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            self._close_consumer()

    def _known(self, subject: str, schema: str) -> int | None:
        return next((n for n in self._state.subjects.get(subject, []) if self._state.by_id[n] == schema), None)

    def _register(self, subject: str, schema: str) -> int:
        producer = Producer(
            {
                **client_config(self._bootstrap, {}),
                "client.id": "k2ray-schemas",
                "transactional.id": self.topic,
                "transaction.timeout.ms": 30_000,
                **self._kafka.options,
            }
        )
        try:
            return self._in_transaction(producer, subject, schema)
        finally:
            # The close of a producer that was fenced both returns and sets an error.
            with contextlib.suppress(SystemError):
                producer.close()

    def _in_transaction(self, producer: Producer, subject: str, schema: str) -> int:
        producer.init_transactions(ANSWER_TIMEOUT_S)
        self._read_to_end()
        known = self._known(subject, schema)
        if known is not None:
            return known
        versions = self._state.subjects.get(subject, [])
        check_compatible(subject, schema, [self._state.by_id[n] for n in versions], self._level)
        # One schema under two subjects keeps its id, as Confluent's registry does it.
        same = (n for n, text in self._state.by_id.items() if text == schema)
        number = next(same, max(self._state.by_id, default=0) + 1)
        producer.begin_transaction()
        key = msgspec.json.encode(_Key(subject, len(versions) + 1))
        producer.produce(self.topic, key=key, value=msgspec.json.encode(_Value(number, schema)), partition=_PARTITION)
        producer.commit_transaction(ANSWER_TIMEOUT_S)
        _log.info("schema_registered", subject=subject, id=number, version=len(versions) + 1)
        self._read_to_end()
        return number

    def _read_to_end(self) -> None:
        if not self._ready:
            self._ensure_topic()
        consumer = self._consumer or self._open_consumer()
        partition = TopicPartition(self.topic, _PARTITION)
        low, end = consumer.get_watermark_offsets(partition, timeout=ANSWER_TIMEOUT_S)
        if low > self._state.next:
            raise OperatorNeeded(
                f"{self.topic} has lost its records before {low}: schemas are gone, and with them what was written "
                "with them. Restore the topic from a copy, or set kafka.topic_prefix to a new one"
            )
        if end < self._state.next:
            self._forget()
            raise RegistryUnavailable(f"{self.topic} ends at {end}, before what was read of it: it was made anew")
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        # A transaction's end mark is a record that nobody is given: only the "end of partition" event passes it.
        while self._state.next < end:
            if time.monotonic() > deadline_s:
                raise RegistryUnavailable(f"{self.topic} could not be read to its end {end}: at {self._state.next}")
            message = consumer.poll(_POLL_S)
            if message is not None:
                self._take(message)

    def _take(self, message: Any) -> None:
        error = message.error()
        if error is not None and error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - its local errors' names
            self._state.next = max(self._state.next, message.offset())
            return
        if error is not None:
            raise KafkaException(error)
        self._state.next = message.offset() + 1
        try:
            key = msgspec.json.decode(message.key() or b"", type=_Key)
            value = msgspec.json.decode(message.value() or b"", type=_Value)
        except msgspec.DecodeError:
            _log.warning("schema_record_unreadable", topic=self.topic, offset=message.offset())
            return
        versions = self._state.subjects.setdefault(key.subject, [])
        if key.version == len(versions) + 1:
            self._state.by_id.setdefault(value.id, value.schema)
            versions.append(value.id)

    def _open_consumer(self) -> Consumer:
        self._consumer = Consumer(
            {
                **client_config(self._bootstrap, {}),
                "client.id": "k2ray-schemas",
                "group.id": "k2ray-none",  # librdkafka wants a name; nothing is ever committed to it
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
                **self._kafka.options,
            }
        )
        self._consumer.assign([TopicPartition(self.topic, _PARTITION, self._state.next)])
        return self._consumer

    def _close_consumer(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _forget(self) -> None:
        self._close_consumer()
        self._state = _State(0, {}, {})
        self._ready = False

    def _ensure_topic(self) -> None:
        """Make the topic, or see to it that the one that is there keeps its records."""
        admin = admin_client(self._bootstrap, self._kafka.options)
        if self.topic not in admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics:
            config = {
                "cleanup.policy": "compact",
                "min.insync.replicas": str(self._kafka.min_insync_replicas),
                "unclean.leader.election.enable": "false",
            }
            topic = NewTopic(self.topic, 1, self._kafka.replication_factor, config=config)
            try:
                admin.create_topics([topic], request_timeout=ANSWER_TIMEOUT_S)[self.topic].result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
            wait_until_known(admin, {self.topic})
        self._ensure_compacted(admin)
        self._ready = True

    def _ensure_compacted(self, admin: Any) -> None:
        resource = ConfigResource(ResourceType.TOPIC, self.topic)
        described = admin.describe_configs([resource], request_timeout=ANSWER_TIMEOUT_S)[resource].result()
        policy = described["cleanup.policy"].value
        if policy == "compact":
            return
        low, end = self._bounds()
        if low > 0:
            raise OperatorNeeded(
                f"{self.topic} has cleanup.policy={policy} and has lost its records before {low} (it ends at {end}): "
                "schemas are gone, and with them what was written with them. Restore the topic from a copy with "
                "cleanup.policy=compact, or set kafka.topic_prefix to a new one"
            )
        _log.warning("schema_topic_repaired", topic=self.topic, policy=policy, now="compact")
        change = ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)
        wanted = ConfigResource(ResourceType.TOPIC, self.topic, incremental_configs=[change])
        admin.incremental_alter_configs([wanted], request_timeout=ANSWER_TIMEOUT_S)[wanted].result()

    def _bounds(self) -> tuple[int, int]:
        consumer = self._consumer or self._open_consumer()
        low, end = consumer.get_watermark_offsets(TopicPartition(self.topic, _PARTITION), timeout=ANSWER_TIMEOUT_S)
        return int(low), int(end)


class _Mapped:
    """Turns Kafka's errors into ours at the end of a `with`: nobody's answer means to ask again."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KafkaException):
            meant: K2rayError = map_error(error, self._doing)
            if isinstance(meant, OperatorNeeded) and error.args[0].code() not in _UNKNOWN:
                raise meant from error
            raise RegistryUnavailable(str(meant)) from error
        if isinstance(error, BrokerUnavailable):
            raise RegistryUnavailable(str(error)) from error
