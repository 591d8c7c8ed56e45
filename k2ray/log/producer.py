"""7. Kafka out: idempotent, acks=all, every delivery report looked at; what Kafka does not take goes to the spool.

`publish` never raises for a broker in trouble. As long as all goes well a record goes straight to librdkafka's queue,
bounded by bytes. Where the queue is full or a delivery fails, records go to the spool instead, and as long as anything
waits there new ones go behind it:

1. a failed delivery stops sending; what else is under way ends first, each record delivered or put into the spool in
   its order (`Spool.append_failed`), before what was published meanwhile (`Spool.append`);
2. then the spool's files are sent, oldest first; a file is deleted when Kafka has confirmed all of it;
3. once nothing waits there, records go straight again.

So a partition's records keep their order but around a failure itself, where Kafka may have taken a later one; the
ledger takes rows in any order. A process that dies during a replay sends part of a file again; the ledger removes
that too.

Not its job: what is in a record. Next in the flow: `log/consumer.py`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from k2ray import metrics
from k2ray.clock import Clock, SystemClock
from k2ray.errors import BrokerUnavailable
from k2ray.log.causes import cause_of
from k2ray.log.client import producer_config
from k2ray.log.producer_stats import ProducerStats, Tally
from k2ray.log.row_sender import RECORD_COST, RowSender, batched
from k2ray.log.spool import Spool
from k2ray.log.spool_file import SpoolRecord
from k2ray.log.topics import MAX_RECORD_BYTES, dead_letter_topic
from k2ray.logs import get_logger
from k2ray.settings import Kafka
from k2ray.wire.codec import Headers

_log = get_logger(__name__)

# A replay leaves half of the queue to what comes in meanwhile.
_REPLAY_SHARE = 0.5
_SYNC_INTERVAL_S = 0.1
# The client has tried for its delivery timeout already; this only keeps an error that comes at once from spinning.
_RETRY_PAUSE_S = 0.25
_ADOPT_INTERVAL_S = 10.0
# Kafka's answers that no repetition changes: the record is kept aside, so that it does not block those behind it.
_LARGEST_VALUE = MAX_RECORD_BYTES - 8192  # headers and framing count too
_REFUSED = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD}


class LogProducer:
    """Sends records; use it from one thread (or one event loop) at a time, and `poll` it often.

    Args:
        bootstrap: HOST:PORT[,HOST:PORT].
        client_id: Name in the broker's log and in metrics, for example `feed:binance:0`.
        spool: Where records wait that Kafka does not take. None: they wait in memory, `publish` raises once
            `queue_max_bytes` wait, and `close` says whether all arrived.
        settings: Compression, queue size, delivery timeout, options.
        clock: For deadlines.
    """

    def __init__(
        self, bootstrap: str, *, client_id: str, spool: Spool | None, settings: Kafka, clock: Clock | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._client_id = client_id
        self._settings = settings
        self._spool = spool
        self._config = producer_config(bootstrap, client_id, settings, MAX_RECORD_BYTES)
        self._producer = Producer(self._config)
        self._seconds_metric = metrics.PRODUCE_SECONDS.labels(client_id)
        self._waiting: deque[SpoolRecord] = deque()
        self._replaying: dict[int, int] = {}
        self._replay_failed: set[int] = set()
        self._holding = False
        self._retry_s = 0.0
        self._tally = Tally()
        self._rows = RowSender(self._tally, self._clock, client_id)
        self._failures = self._refused = 0
        self._last_error: str | None = None
        self._fatal = False
        self._closed = False
        self._next_sync_s = self._next_adopt_s = self._clock.monotonic_s()

    def publish(self, topic: str, partition: int, value: bytes, headers: Headers, rows: int) -> None:
        """Take a record over: from now on it is Kafka's, the spool's, or counted as shed.

        Args:
            topic: An existing topic.
            partition: Of the instruments inside (`log/partition.py`).
            value: At most `topics.MAX_RECORD_BYTES`, some 60,000 rows.
            headers: As the codec made them.
            rows: Rows of market data inside, for counting.

        Raises:
            ValueError: The value is too large: a programming error.
            BrokerUnavailable: Only without a spool: too much waits already. Nothing was taken over.
        """
        if len(value) > _LARGEST_VALUE:
            raise ValueError(f"a record of {len(value)} bytes; at most {_LARGEST_VALUE} fit")
        record = SpoolRecord(topic, partition, value, headers, rows)
        full = self._tally.bytes_in_flight + len(value) > self._settings.queue_max_bytes
        if self._spool is None:
            if full:
                raise BrokerUnavailable(f"{self._tally.bytes_in_flight} bytes wait for Kafka already")
            self._send_or_wait(record)
        elif self._holding or full or self._spool.waiting or not self._send(record, None):
            self._shed_if_full(self._spool.append(record), record)

    def publish_each(self, topic: str, partition: int, values: list[bytes]) -> None:
        """Take over many records of one row each, without headers; they keep their order.

        Args:
            topic: An existing topic.
            partition: Of the instruments inside.
            values: Each at most `topics.MAX_RECORD_BYTES`.

        Raises:
            BrokerUnavailable: Only without a spool: too much waits already. Nothing was taken over.
        """
        cost = sum(map(len, values)) + RECORD_COST * len(values)
        full = self._tally.bytes_in_flight + cost > self._settings.queue_max_bytes
        if self._spool is None and full:
            raise BrokerUnavailable(f"{self._tally.bytes_in_flight} bytes wait for Kafka already")
        behind = self._waiting if self._spool is None else self._spool.waiting
        left = values
        if not (self._holding or full or behind):
            left, error = self._rows.send(self._producer, topic, partition, values)
            if error is not None:
                self._note_error(error)
                self._hold()
        records = [SpoolRecord(topic, partition, value, [], 1) for value in left]
        if self._spool is None:
            self._waiting += records
            return
        for some in batched(records):
            self._shed_if_full(self._spool.append(*some), *some)

    def dead_letter(self, exchange: str, raw: bytes, reason: str, *, source: str, at_us: int) -> None:
        """Put what cannot be read into the exchange's dead-letter topic, raw, with its story in the headers.

        Args:
            exchange: Whose it is.
            raw: The frame or record as it came.
            reason: Why it cannot be read.
            source: Which connection, or topic, partition and offset, it came from.
            at_us: When we got it.
        """
        headers = [
            ("k2ray-kind", b"dead_letter"),
            ("exchange", exchange.encode()),
            ("reason", reason[:2000].encode()),
            ("source", source.encode()),
            ("at_us", str(at_us).encode()),
        ]
        if len(raw) > _LARGEST_VALUE:
            headers.append(("truncated_from_bytes", str(len(raw)).encode()))
            raw = raw[:_LARGEST_VALUE]
        metrics.DEAD_LETTERS.labels(exchange, source.partition(":")[0].partition("[")[0], cause_of(reason)).inc()
        self.publish(dead_letter_topic(self._settings.topic_prefix, exchange), 0, raw, headers, rows=0)

    def poll(self, timeout_s: float = 0.0) -> None:
        """Look at delivery reports and go on with a replay. Cheap; call it at least some times a second."""
        self._producer.poll(timeout_s)
        self._keep_failed()
        if self._fatal:
            self._reopen()
        if self._holding and self._tally.records_in_flight == 0 and self._clock.monotonic_s() >= self._retry_s:
            self._settle()
        if not self._holding:
            self._replay()
        now_s = self._clock.monotonic_s()
        if now_s < self._next_sync_s:
            return
        self._next_sync_s = now_s + _SYNC_INTERVAL_S
        metrics.PRODUCE_QUEUE_BYTES.labels(self._client_id).set(self._tally.bytes_in_flight)
        if self._spool is None:
            return
        self._spool.sync()
        metrics.SPOOL_BYTES.labels(self._client_id).set(self._spool.bytes)
        metrics.SPOOL_LIMIT_BYTES.labels(self._client_id).set(self._spool.max_bytes)
        if now_s >= self._next_adopt_s:
            self._spool.adopt()
            self._next_adopt_s = now_s + _ADOPT_INTERVAL_S

    def flush(self, timeout_s: float) -> bool:
        """Wait until Kafka has confirmed everything, spool included; returns whether it has."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self.poll(0.0)
            if not self._outstanding():
                return True
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            # Wakes at the first report, so the wait is not a delay.
            self.poll(min(left_s, 0.05))

    def close(self, timeout_s: float) -> bool:
        """Flush; what is not confirmed by then goes to the spool for the next process. Returns whether all arrived.

        Without a spool `False` means that records are lost, which the caller must handle.
        """
        if self._closed:
            return not self._outstanding()
        self._closed = True
        arrived = self.flush(timeout_s)
        if not arrived:
            self._holding = True
            self._purge()
        if self._spool is not None:
            self._spool.close()
        self._producer.close()
        if not arrived:
            _log.warning("producer_closed_early", client=self._client_id, **self._counts())
        return arrived

    def stats(self) -> ProducerStats:
        """Return the counts."""
        spool = self._spool
        shed = spool.shed.values() if spool else ()
        return ProducerStats(
            **asdict(self._tally),
            spool_rows=spool.rows if spool else sum(record.rows for record in self._waiting),
            spool_records=spool.records if spool else len(self._waiting),
            spool_bytes=spool.bytes if spool else sum(len(record.value) for record in self._waiting),
            failures=self._failures,
            refused=self._refused,
            shed_rows=sum(item.rows for item in shed),
            shed_records=sum(item.records for item in shed),
            spooling=self._holding or (spool is not None and spool.records > 0),
            last_error=self._last_error,
        )

    def _send(self, record: SpoolRecord, file: int | None) -> bool:
        """Hand a record to the client; `file` is the spool's file that it comes from. False: it was not taken."""
        headers: list[Any] = record.headers
        try:
            self._producer.produce(
                record.topic,
                value=record.value,
                partition=record.partition,
                headers=headers,
                on_delivery=self._reporter(record, file),
            )
        except BufferError:
            return False
        except KafkaException as error:
            self._note_error(error.args[0])
            self._hold()
            return False
        self._tally.sent(1, record.rows, len(record.value))
        return True

    def _keep_failed(self) -> None:
        """Put single-row records that failed into the spool, many at a time."""
        together: list[SpoolRecord] = []
        for record, error in self._rows.settle():
            if self._spool is None or error.code() in _REFUSED:
                self._failed(record, None, error)
            else:
                self._note_failure(record, error)
                together.append(record)
        for some in batched(together):
            assert self._spool is not None
            self._shed_if_full(self._spool.append_failed(*some), *some)
        if together:
            self._hold()

    def _reporter(self, record: SpoolRecord, file: int | None) -> Callable[[KafkaError | None, Any], None]:
        sent_s = self._clock.monotonic_s()

        def report(error: KafkaError | None, _message: Any) -> None:
            self._tally.ended(record.rows, len(record.value), delivered=error is None)
            if error is None:
                metrics.PRODUCED_ROWS.labels(record.topic).inc(record.rows)
                self._seconds_metric.observe(self._clock.monotonic_s() - sent_s)
            else:
                self._failed(record, file, error)
            if file is not None:
                self._report_file(file)

        return report

    def _failed(self, record: SpoolRecord, file: int | None, error: KafkaError) -> None:
        self._note_failure(record, error)
        if error.code() in _REFUSED and self._spool is not None:
            self._refused += 1
            self._shed_if_full(self._spool.set_aside(record, error.str()), record)
            return
        self._hold()
        if file is not None:
            self._replay_failed.add(file)
        elif self._spool is not None:
            self._shed_if_full(self._spool.append_failed(record), record)
        else:
            self._waiting.append(record)

    def _report_file(self, file: int) -> None:
        self._replaying[file] -= 1
        if self._replaying[file] == 0 and file not in self._replay_failed and self._spool is not None:
            del self._replaying[file]
            self._spool.done(file)

    def _hold(self) -> None:
        """Send nothing until what is under way has ended, and a pause is over."""
        self._holding = True
        self._retry_s = self._clock.monotonic_s() + _RETRY_PAUSE_S

    def _settle(self) -> None:
        """Nothing is under way any more: what failed is in the spool in its order, and may be sent again."""
        self._holding = False
        for file in self._replay_failed:
            del self._replaying[file]
            if self._spool is not None:
                self._spool.put_back(file)
        self._replay_failed.clear()

    def _replay(self) -> None:
        limit = self._settings.queue_max_bytes * _REPLAY_SHARE
        while self._waiting and self._tally.bytes_in_flight < limit and not self._holding:
            if not self._send(self._waiting[0], None):
                return
            self._waiting.popleft()
        while self._spool is not None and not self._holding and self._tally.bytes_in_flight < limit:
            taken = self._spool.take()
            if taken is None:
                return
            self._send_file(*taken)

    def _send_file(self, file: int, records: list[SpoolRecord]) -> None:
        # One more than its records, so that the file is not done before its last record is sent.
        self._replaying[file] = len(records) + 1
        for index, record in enumerate(records):
            if not self._send(record, file):
                self._hold()
                self._replay_failed.add(file)
                self._replaying[file] -= len(records) - index
                break
        self._report_file(file)

    def _send_or_wait(self, record: SpoolRecord) -> None:
        if self._holding or self._waiting or not self._send(record, None):
            self._waiting.append(record)

    def _shed_if_full(self, kept: bool, *records: SpoolRecord) -> None:
        if not kept:
            metrics.SHED_ROWS.labels(records[0].topic).inc(sum(record.rows for record in records))

    def _note_failure(self, record: SpoolRecord, error: KafkaError) -> None:
        self._failures += 1
        metrics.PRODUCE_FAILURES.labels(record.topic).inc()
        self._note_error(error)

    def _note_error(self, error: KafkaError) -> None:
        self._last_error = error.str()
        if error.fatal():
            self._fatal = True

    def _outstanding(self) -> bool:
        on_disk = self._spool is not None and self._spool.records > 0
        return bool(self._tally.records_in_flight or self._waiting or self._replaying or on_disk)

    def _purge(self) -> None:
        """Make the client give back what it holds; each record's report says so and puts it into the spool."""
        self._producer.purge()
        deadline_s = time.monotonic() + 5.0
        while self._tally.records_in_flight and time.monotonic() < deadline_s:
            self._producer.poll(0.05)
        self._keep_failed()

    def _reopen(self) -> None:
        """A fatal error ends an idempotent producer's life: take back what it held and go on with a new one."""
        _log.error("producer_fatal", client=self._client_id, error=self._last_error)
        self._fatal = False
        self._holding = True
        self._purge()
        self._fatal = False
        self._producer.close()
        self._producer = Producer(self._config)

    def _counts(self) -> dict[str, int | bool | str | None]:
        stats = self.stats()
        return {name: getattr(stats, name) for name in ("spool_records", "failures", "shed_records", "last_error")}
