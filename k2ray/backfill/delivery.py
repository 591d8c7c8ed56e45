"""Rows, seals and dead letters of a backfill into Kafka, confirmed; and where each partition ends after that.

Nothing is spooled: what Kafka does not take now would only be fetched again after a crash. So a delivery waits for as
long as Kafka is away, and nothing more is asked of the exchange meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from k2ray.backfill.model import Stream
from k2ray.errors import BrokerUnavailable
from k2ray.exchanges.base import DeadFrame
from k2ray.model import CHANNELS
from k2ray.wire.codec import Seal, encode_seal
from k2ray.wire.encoder import RowEncoder, RowProducer, publish_rows

FLUSH_S = 2.0


class Producer(RowProducer, Protocol):
    """What a backfill needs of `log.producer.LogProducer`."""

    def dead_letter(self, exchange: str, raw: bytes, reason: str, *, source: str, at_us: int) -> None:
        """Take a row that cannot be stored."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is delivered; whether it was."""


class LogEnds(Protocol):
    """What it needs of `log.consumer.LogReader`."""

    def watermarks(self, key: tuple[str, int]) -> tuple[int, int]:
        """Return the first and the next offset of a partition."""


@dataclass(frozen=True)
class Rows:
    """Rows of a stream, in its table's wire schema."""

    stream: Stream
    rows: pa.RecordBatch


@dataclass(frozen=True)
class SealRecord:
    """A stream's ids that are lost for good."""

    stream: Stream
    seal: Seal


@dataclass(frozen=True)
class Letter:
    """A row of a stream that cannot be stored."""

    stream: Stream
    frame: DeadFrame


Item = Rows | SealRecord | Letter


class Delivery:
    """Delivers for one exchange; one delivery at a time.

    Args:
        exchange: Whose dead letters.
        producer: Without a spool; used from one thread at a time.
        encoder: How rows look in Kafka.
        ends: Where the log's ends are asked.
        partition: Stream -> topic and partition.
    """

    def __init__(
        self,
        exchange: str,
        producer: Producer,
        encoder: RowEncoder,
        ends: LogEnds,
        partition: Callable[[Stream], tuple[str, int]],
    ) -> None:
        self._exchange = exchange
        self._producer = producer
        self._encoder = encoder
        self._ends = ends
        self._partition = partition
        self._busy = threading.Lock()
        self.trouble = ""

    async def deliver(self, items: Sequence[Item]) -> dict[Stream, int]:
        """Return where the partition of each stream with rows or seals ends, once Kafka has confirmed everything."""
        if not items:
            return {}
        todo = list(items)
        streams = {item.stream for item in items if not isinstance(item, Letter)}
        while True:
            try:
                offsets = await asyncio.to_thread(self._try, todo, streams)
            except BrokerUnavailable as error:
                self.trouble = str(error)
                await asyncio.sleep(FLUSH_S)
                continue
            if offsets is not None:
                self.trouble = ""
                return offsets
            self.trouble = "Kafka has not confirmed yet"

    def finish(self, timeout_s: float) -> bool:
        """Flush after a cancelled `deliver`, whose thread may still be at work; returns whether all arrived."""
        with self._busy:
            return self._producer.flush(timeout_s)

    def _try(self, todo: list[Item], streams: set[Stream]) -> dict[Stream, int] | None:
        """Publish what is left of `todo`; None if Kafka has not confirmed all yet."""
        with self._busy:
            try:
                while todo:
                    self._publish(todo[0])
                    todo.pop(0)
            finally:
                confirmed = self._producer.flush(FLUSH_S)
        if not confirmed:
            return None
        keys = {stream: self._partition(stream) for stream in streams}
        ends = {key: self._ends.watermarks(key)[1] for key in set(keys.values())}
        return {stream: ends[key] for stream, key in keys.items()}

    def _publish(self, item: Item) -> None:
        match item:
            case Rows(stream, rows):
                topic, partition = self._partition(stream)
                table = CHANNELS[stream[0]].table
                publish_rows(self._producer, self._encoder, topic, partition, table, rows)
            case SealRecord(stream, seal):
                topic, partition = self._partition(stream)
                self._producer.publish(topic, partition, *encode_seal(seal), 0)
            case Letter(stream, frame):
                source = f"backfill:{':'.join(stream)}"
                self._producer.dead_letter(
                    self._exchange, frame.raw, frame.reason, source=source, at_us=frame.received_us
                )
