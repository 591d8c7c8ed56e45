"""Many records of one row each: handed to the client in one call, their reports counted together.

One `produce` and one closure a record cost 2.4 us; this costs 1.8, two thirds of it inside of the client.

Not its job: what becomes of those that fail (`producer.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from confluent_kafka import KafkaError, Producer

from k2ray import metrics
from k2ray.clock import Clock
from k2ray.log.producer_stats import Tally
from k2ray.log.spool_file import SpoolRecord

RECORD_COST = 150
"""Bytes that a record costs the client beside its value; where values are a hundred bytes, that decides."""

SPOOLED_TOGETHER = 1_000


def batched(records: list[SpoolRecord]) -> Iterator[list[SpoolRecord]]:
    """Cut records into what goes to the spool in one piece."""
    for at in range(0, len(records), SPOOLED_TOGETHER):
        yield records[at : at + SPOOLED_TOGETHER]


class RowSender:
    """Sends single-row records.

    Args:
        tally: Counts what is under way.
        clock: For the time to confirmation.
        client_id: For metrics.
    """

    def __init__(self, tally: Tally, clock: Clock, client_id: str) -> None:
        self._tally = tally
        self._clock = clock
        self._delivered: dict[str, int] = {}
        self._sent_s = 0.0
        self._failed: list[tuple[SpoolRecord, KafkaError]] = []
        self._seconds_metric = metrics.PRODUCE_SECONDS.labels(client_id)

    def send(
        self, client: Producer, topic: str, partition: int, values: list[bytes]
    ) -> tuple[list[bytes], KafkaError | None]:
        """Hand values to the client; return those that it did not take, and why if not for a full queue."""
        messages: list[dict[str, Any]] = [{"value": value} for value in values]
        report = self._reporter(topic, partition)
        taken = client.produce_batch(topic, messages, partition=partition, on_delivery=report)
        left: list[bytes] = []
        wrong: KafkaError | None = None
        if taken < len(messages):
            for message in messages:
                if "_error" in message:
                    left.append(message["value"])
                    if message["_error"].code() != KafkaError._QUEUE_FULL:  # noqa: SLF001 - its local errors' names
                        wrong = message["_error"]
        size = sum(map(len, values)) - sum(map(len, left))
        self._tally.sent(taken, taken, size + RECORD_COST * taken)
        return left, wrong

    def settle(self) -> list[tuple[SpoolRecord, KafkaError]]:
        """Count what was delivered since the last call; return what failed since then, in order."""
        for topic, rows in self._delivered.items():
            metrics.PRODUCED_ROWS.labels(topic).inc(rows)
            self._seconds_metric.observe(self._clock.monotonic_s() - self._sent_s)
        self._delivered.clear()
        failed, self._failed = self._failed, []
        return failed

    def _reporter(self, topic: str, partition: int) -> Callable[[KafkaError | None, Any], None]:
        sent_s = self._clock.monotonic_s()
        tally = self._tally

        def report(error: KafkaError | None, message: Any) -> None:
            size = len(message)
            tally.ended(1, size, delivered=error is None)
            tally.bytes_in_flight -= RECORD_COST
            if error is None:
                self._delivered[topic] = self._delivered.get(topic, 0) + 1
                self._sent_s = sent_s
            else:
                self._failed.append((SpoolRecord(topic, partition, message.value(), [], 1), error))

        return report
