"""8. Kafka in: records of assigned partitions in batches, each with its offset and leader epoch.

Nothing is remembered in Kafka: no group, no commits. A reader is told where to start, and a position that the log no
longer has (retention passed it, or the broker lost its end) is an `OffsetLost` with the log's bounds, never a silent
jump. While the broker is away `poll` returns nothing and reconnects by itself; questions raise `BrokerUnavailable`. A
topic that is deleted under a reader looks the same from here (librdkafka does not tell): compare the ids of `cluster`.

Not its job: what the bytes mean (`wire/codec.py`), which rows are new (`ledger/`). Next in the flow: `ledger/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)

from k2ray.errors import BrokerUnavailable, K2rayError, OperatorNeeded
from k2ray.log.client import admin_client, client_config, map_error
from k2ray.log.records import Fetched, LogRecord, PartitionKey, RecordRun

ANSWER_TIMEOUT_S = 15.0

# The client makes an object of each record; many thousands of them alive at once cost twice as much each.
_TOGETHER = 1_000

# What librdkafka reads ahead, per reader: some 100,000 rows, a tenth of a second of the writer's work.
READ_AHEAD_BYTES = 16_777_216

_LOST = {KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION, KafkaError.OFFSET_OUT_OF_RANGE}  # noqa: SLF001
_AWAY = {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE}  # noqa: SLF001
_GONE = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC}  # noqa: SLF001


@dataclass(frozen=True)
class Position:
    """Where to read on.

    Attributes:
        offset: Of the next record; 0 is the very first that the topic ever had.
        leader_epoch: Of the record before it, so that a log which was cut and regrown is noticed; None: not known.
    """

    offset: int
    leader_epoch: int | None = None


@dataclass(frozen=True)
class TopicIds:
    """What tells a topic from another one of the same name: its id; and its number of partitions."""

    topic_id: str
    partitions: int


@dataclass(frozen=True)
class ClusterIds:
    """What tells a Kafka from another one: cluster id, and ids of the topics that exist (others are left out)."""

    cluster_id: str
    topics: dict[str, TopicIds]


class OffsetLost(K2rayError):
    """The log does not have the wanted offset: never skip it silently, record the hole or the rewind.

    `low` above `wanted`: retention (or somebody's delete) passed us, rows [wanted, low) are lost. `high` below
    `wanted`: the broker lost its end, acknowledged records included. Neither: the log was cut and has grown anew since.

    Attributes:
        key: Topic and partition.
        wanted: The offset that was asked for.
        low: First offset that the log has.
        high: Its end.
    """

    def __init__(self, key: PartitionKey, wanted: int, low: int, high: int, said: str = "") -> None:
        super().__init__(f"{key[0]}[{key[1]}] does not have offset {wanted}: it has [{low}, {high}). {said}".rstrip())
        self.key = key
        self.wanted = wanted
        self.low = low
        self.high = high


class LogReader:
    """Reads assigned partitions; use it from one thread at a time.

    Args:
        bootstrap: HOST:PORT[,HOST:PORT].
        options: More librdkafka options (`kafka.options`); they win.
        client_id: Name in the broker's log and metrics.
        read_ahead_bytes: What may be fetched before it is asked for.
    """

    def __init__(
        self,
        bootstrap: str,
        options: Mapping[str, str] | None = None,
        *,
        client_id: str = "k2ray-reader",
        read_ahead_bytes: int = READ_AHEAD_BYTES,
    ) -> None:
        self._bootstrap = bootstrap
        self._options = dict(options or {})
        self._next: dict[PartitionKey, int] = {}
        self._bad: tuple[PartitionKey, KafkaError] | None = None
        self._reachable = True
        config: dict[str, Any] = {
            **client_config(bootstrap, {}, self._on_error),
            "client.id": client_id,
            "group.id": "k2ray-none",  # librdkafka wants a name; nothing is ever committed to it
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": False,
            "check.crcs": True,
            "fetch.wait.max.ms": 100,
            "fetch.max.bytes": max(read_ahead_bytes, 8_388_608),
            "max.partition.fetch.bytes": 4_194_304,
            "queued.max.messages.kbytes": read_ahead_bytes // 1024,
            "queued.min.messages": 100_000,
            # 1 s by default: a full read-ahead would pause the partition for that long, however fast we read.
            "fetch.queue.backoff.ms": 5,
            **self._options,
        }
        self._consumer = Consumer(config)

    @property
    def reachable(self) -> bool:
        """Whether the last that was heard of the brokers was good. For status; reading copes by itself."""
        return self._reachable

    def assign(self, positions: Mapping[PartitionKey, Position]) -> None:
        """Read these partitions from these positions on, and no others.

        Raises:
            BrokerUnavailable: The client refused; repeat.
        """
        wanted = []
        for (topic, partition), position in positions.items():
            if position.leader_epoch is None:
                wanted.append(TopicPartition(topic, partition, position.offset))
            else:
                wanted.append(TopicPartition(topic, partition, position.offset, leader_epoch=position.leader_epoch))
        self._next = {key: position.offset for key, position in positions.items()}
        self._bad = None
        try:
            self._consumer.assign(wanted)
        except KafkaException as error:
            raise map_error(error, f"assign {len(wanted)} partitions") from error

    def poll(self, max_records: int = 1000, timeout_s: float = 0.1) -> list[LogRecord]:
        """Return what is there, at most `max_records`; wait up to `timeout_s` for the first one only.

        Records of one partition come in order and without a hole. An empty list says nothing new, or broker away.

        Raises:
            OffsetLost: The log does not have the wanted offset; the exception has its bounds.
            OperatorNeeded: The topic is gone.
            BrokerUnavailable: Another error of Kafka; repeat.
        """
        records = [_record(message) for message in self._consume(max_records, timeout_s)]
        for record in records:
            self._next[record.topic, record.partition] = record.offset + 1
        return records

    def fetch(self, max_records: int = 1000, timeout_s: float = 0.1) -> list[Fetched]:
        """Do as `poll`, but return records without headers in runs: of small records, that is cheaper by half."""
        found: list[Fetched] = []
        open_runs: dict[PartitionKey, RecordRun] = {}
        messages = self._consume(min(max_records, _TOGETHER), timeout_s)
        left = max_records
        while messages:
            for key, some in _by_partition(messages):
                for headless, alike in _by_headers(some):
                    if headless:
                        _extend(found, open_runs, key, alike)
                    else:
                        open_runs.pop(key, None)
                        found += map(_record, alike)
                self._next[key] = some[-1].offset() + 1
            left -= len(messages)
            # What is wrong now is told by the next call: raised here, it would take with it what was read.
            if left <= 0 or self._bad is not None:
                break
            messages = self._good(self._consumer.consume(min(left, _TOGETHER), 0))
        return found

    def _consume(self, max_records: int, timeout_s: float) -> list[Any]:
        if self._bad is not None:
            (key, error), self._bad = self._bad, None
            raise self._meaning(key, error)
        # consume(n, timeout) would wait the whole timeout for the n-th record.
        messages: list[Any] = self._consumer.consume(1, timeout_s)
        if messages and max_records > 1:
            messages += self._consumer.consume(max_records - 1, 0)
        good = self._good(messages)
        if not good and self._bad is not None:
            return self._consume(max_records, timeout_s)
        return good

    def _good(self, messages: list[Any]) -> list[Any]:
        """Return the messages that are records; take note of the errors between them."""
        good = [message for message in messages if message.error() is None]
        if len(good) < len(messages):
            for message in messages:
                if message.error() is not None:
                    self._note((message.topic(), message.partition()), message.error())
        if good:
            self._reachable = True
        return good

    def watermarks(self, key: PartitionKey, *, timeout_s: float = ANSWER_TIMEOUT_S) -> tuple[int, int]:
        """Ask the broker for a partition's first offset and its end (the next record's offset).

        This is a round trip (and a slow one while a fetch waits): not for the hot path; see `log/lag.py`.

        Raises:
            BrokerUnavailable: No answer.
            OperatorNeeded: There is no such topic or partition.
        """
        try:
            answer = self._consumer.get_watermark_offsets(TopicPartition(*key), timeout=timeout_s)
        except KafkaException as error:
            raise map_error(error, f"tell the bounds of {key[0]}[{key[1]}]") from error
        if answer is None:
            raise BrokerUnavailable(f"Kafka did not tell the bounds of {key[0]}[{key[1]}]")
        return int(answer[0]), int(answer[1])

    def cached_end(self, key: PartitionKey) -> int | None:
        """Return the partition's end as of the last fetch, without asking anybody; None before the first fetch."""
        answer = self._consumer.get_watermark_offsets(TopicPartition(*key), cached=True)
        return int(answer[1]) if answer is not None and answer[1] >= 0 else None

    def cluster(self, topics: Sequence[str], *, timeout_s: float = ANSWER_TIMEOUT_S) -> ClusterIds:
        """Ask for the ids of the cluster and of those of `topics` that exist.

        Raises:
            BrokerUnavailable: No answer.
        """
        admin = admin_client(self._bootstrap, self._options)
        try:
            cluster_id = admin.describe_cluster(request_timeout=timeout_s).result().cluster_id
            futures = admin.describe_topics(TopicCollection(list(topics)), request_timeout=timeout_s) if topics else {}
        except KafkaException as error:
            raise map_error(error, f"say who it is ({self._bootstrap})") from error
        found: dict[str, TopicIds] = {}
        for name, future in futures.items():
            try:
                description = future.result()
            except KafkaException as error:
                if error.args[0].code() in _GONE:
                    continue
                raise map_error(error, f"describe topic {name}") from error
            found[name] = TopicIds(str(description.topic_id), len(description.partitions))
        return ClusterIds(str(cluster_id), found)

    def close(self) -> None:
        """Leave. A second call does nothing."""
        try:
            self._consumer.close()
        except RuntimeError:
            return

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in _AWAY:
            self._reachable = False

    def _note(self, key: PartitionKey, error: KafkaError) -> None:
        """Keep an error for the next poll, so that records read beside it are not lost with it."""
        if error.code() in _AWAY:
            self._reachable = False
        elif self._bad is None:
            self._bad = (key, error)

    def _meaning(self, key: PartitionKey, error: KafkaError) -> K2rayError:
        where = f"{key[0]}[{key[1]}]"
        if error.code() in _LOST and key in self._next:
            low, high = self.watermarks(key)
            return OffsetLost(key, self._next[key], low, high, str(error.str()))
        if error.code() in _GONE:
            return OperatorNeeded(f"Kafka has no partition {where} any more: {error.str()}")
        return BrokerUnavailable(f"reading {where}: {error.str()}")


def _record(message: Any) -> LogRecord:
    kind, milliseconds = message.timestamp()
    return LogRecord(
        message.topic(),
        message.partition(),
        message.offset(),
        message.leader_epoch(),
        0 if kind == TIMESTAMP_NOT_AVAILABLE else milliseconds * 1000,
        message.value() or b"",
        message.headers() or [],
    )


def _by_partition(messages: list[Any]) -> list[tuple[PartitionKey, list[Any]]]:
    """Sort out messages by partition; their order in each stays."""
    found: dict[PartitionKey, list[Any]] = {}
    for message in messages:
        found.setdefault((message.topic(), message.partition()), []).append(message)
    return list(found.items())


def _by_headers(messages: list[Any]) -> Iterator[tuple[bool, list[Any]]]:
    """Cut where messages with headers follow messages without, and the other way round."""
    headless = [message.headers() is None for message in messages]
    if all(headless):
        yield True, messages
        return
    for flag, group in groupby(zip(headless, messages, strict=True), key=lambda pair: pair[0]):
        yield flag, [message for _, message in group]


def _extend(
    found: list[Fetched], open_runs: dict[PartitionKey, RecordRun], key: PartitionKey, messages: list[Any]
) -> None:
    """Add messages without headers to their partition's open run."""
    epoch = messages[-1].leader_epoch()
    run = open_runs.get(key)
    if run is None or run.leader_epoch != epoch:
        run = open_runs[key] = RecordRun(*key, [], epoch, [], [])
        found.append(run)
    run.offsets.extend([message.offset() for message in messages])
    stamps = [message.timestamp() for message in messages]
    run.timestamps_us.extend([0 if kind == TIMESTAMP_NOT_AVAILABLE else ms * 1000 for kind, ms in stamps])
    run.values.extend([message.value() or b"" for message in messages])
