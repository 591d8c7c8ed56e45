"""A feed's frames to records of the log: decoded with their connection's decoder, split by partition, encoded, counted.

Each connection has its own decoder, since what a quote covers depends on the quote before it on the same connection.

Next in the flow: frames go to 4, `exchanges/binance.py`; bytes to 7, `log/producer.py`.
"""

from __future__ import annotations

from typing import Protocol

from k2ray import metrics, model
from k2ray.exchanges.base import Decoded, ExchangeAdapter, FrameDecoder, Instrument, Subscription
from k2ray.feed.gather import Gathered
from k2ray.feed.handover import Handover
from k2ray.feed.split import split_by_partition
from k2ray.log.topics import topic_name
from k2ray.settings import Settings
from k2ray.wire.codec import Headers
from k2ray.wire.encoder import ARROW, RowEncoder, publish_rows


class Producer(Protocol):
    """What a feed needs of `log.producer.LogProducer`."""

    def publish(self, topic: str, partition: int, value: bytes, headers: Headers, rows: int) -> None:
        """Take a record; broker trouble is the producer's."""

    def publish_each(self, topic: str, partition: int, values: list[bytes]) -> None:
        """Take records of one row each."""

    def dead_letter(self, exchange: str, raw: bytes, reason: str, *, source: str, at_us: int) -> None:
        """Take a frame that cannot be read."""

    def poll(self, timeout_s: float = 0.0) -> None:
        """Serve delivery reports and the spool's replay."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is delivered; whether it was."""


class Publisher:
    """Turns what connections deliver into records.

    Args:
        settings: All settings.
        adapter: The exchange.
        feed: Index of the feed, with its copy's number if it is not the first: a metric's label.
        subscription: What every connection carries.
        producer: Where records go.
        encoder: How rows look in Kafka.

    Attributes:
        handover: Told of every row while a rotation is under way; None otherwise.
        frames, bytes, rows, ignored, dead: Counts since the start.
    """

    def __init__(
        self,
        settings: Settings,
        adapter: ExchangeAdapter,
        feed: str,
        subscription: Subscription,
        producer: Producer,
        encoder: RowEncoder = ARROW,
    ) -> None:
        self._adapter = adapter
        self._feed = feed
        self._subscription = subscription
        self._producer = producer
        self._encoder = encoder
        self._partitions = settings.kafka.partitions
        self._topics = {
            channel: topic_name(settings.kafka.topic_prefix, adapter.asset_class, channel, adapter.name)
            for channel in subscription.channels
        }
        self._decoders: dict[int, FrameDecoder] = {}
        self._instruments: dict[str, Instrument] = {}
        self.handover: Handover | None = None
        self.frames = self.bytes = self.rows = self.ignored = self.dead = 0
        labels = (adapter.name, feed)
        self._frames_metric = metrics.FEED_FRAMES.labels(*labels)
        self._bytes_metric = metrics.FEED_BYTES.labels(*labels)
        self._ignored_metric = metrics.FEED_IGNORED.labels(*labels)
        self._rows_metric = {
            channel: metrics.FEED_ROWS.labels(*labels, channel, adapter.asset_class)
            for channel in subscription.channels
        }

    def begin(self, connection: int) -> None:
        """Make the decoder of a new connection."""
        decoder = self._decoders[connection] = self._adapter.decoder(self._subscription)
        decoder.learn(self._instruments)

    def end(self, connection: int) -> None:
        """Forget a connection that will deliver nothing more."""
        self._decoders.pop(connection, None)

    def learn(self, instruments: dict[str, Instrument]) -> None:
        """Use what the exchange says about its symbols, on every connection."""
        self._instruments = instruments
        for decoder in self._decoders.values():
            decoder.learn(instruments)

    def publish(self, connection: int, gathered: Gathered) -> Decoded:
        """Hand the rows and dead letters of these frames to the producer; return what they held."""
        decoded = self._decoders[connection].decode(gathered.frames, gathered.received_us)
        exchange = self._adapter.name
        for channel, batch in decoded.batches.items():
            table = model.CHANNELS[channel].table
            for partition, rows in split_by_partition(batch, exchange, self._partitions):
                publish_rows(self._producer, self._encoder, self._topics[channel], partition, table, rows)
            self.rows += batch.num_rows
            self._rows_metric[channel].inc(batch.num_rows)
            if self.handover is not None:
                self.handover.note(connection, channel, batch)
        for dead in decoded.dead:
            source = f"feed:{exchange}:{self._feed}/{connection}"
            self._producer.dead_letter(exchange, dead.raw, dead.reason, source=source, at_us=dead.received_us)
        size = sum(map(len, gathered.frames))
        self.frames += len(gathered.frames)
        self.bytes += size
        self.dead += len(decoded.dead)
        self.ignored += decoded.ignored
        self._frames_metric.inc(len(gathered.frames))
        self._bytes_metric.inc(size)
        self._ignored_metric.inc(decoded.ignored)
        return decoded
