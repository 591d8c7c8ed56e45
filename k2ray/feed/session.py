"""2. A feed: runs the connection's machine with a transport, decodes what it publishes, hands it to the producer.

The shell around `connection.py`: sinks put events into an inbox, `run` takes them out, carries out the instructions,
and sleeps until the machine's next due time. One turn handles at most a read or two of the socket, so the loop stays
responsive. An actor gives it a process (`actors/feed.py`); tests run it in theirs.

Next in the flow: 3, `connection.py`; frames go to 4, `exchanges/binance.py`; bytes to 7, `log/producer.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from k2ray import metrics, model
from k2ray.clock import Clock, SystemClock
from k2ray.errors import ExchangeUnavailable
from k2ray.exchanges import adapter as adapter_named
from k2ray.exchanges.base import SHUTDOWN, FrameDecoder, Instrument, Subscription
from k2ray.feed import connection as machine
from k2ray.feed.gather import Gathered
from k2ray.feed.instruments import fetch_instruments
from k2ray.feed.split import split_by_partition
from k2ray.feed.transport import Connect, Endpoint, Transport, tls_context, transport_named
from k2ray.log.partition import partition_of
from k2ray.log.topics import topic_name
from k2ray.logs import get_logger
from k2ray.settings import Settings
from k2ray.wire.codec import Headers, encode_rows

POLL_S = 0.05
"""Longest sleep: delivery reports and the spool's replay want to be looked at some times a second."""

INSTRUMENTS_WAIT_S = 2.0
"""How long the first connection waits for the exchange's own word on its symbols."""

_CLOSE_NORMAL = 1000

_log = get_logger(__name__)


class Producer(Protocol):
    """What a feed needs of `log.producer.LogProducer`."""

    def publish(self, topic: str, partition: int, value: bytes, headers: Headers, rows: int) -> None:
        """Take a record; broker trouble is the producer's."""

    def dead_letter(self, exchange: str, raw: bytes, reason: str, *, source: str, at_us: int) -> None:
        """Take a frame that cannot be read."""

    def poll(self, timeout_s: float = 0.0) -> None:
        """Serve delivery reports and the spool's replay."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is delivered; whether it was."""


@dataclass(frozen=True)
class FeedStatus:
    """What a feed says about itself; counts are since its start.

    Attributes:
        state: Of `connection.Connection`, or `idle` for a feed that owns no symbol.
        frames, bytes: Received.
        rows: Handed to the producer.
        ignored, dead_letters: Frames that became no row.
        gathered: Frames held at the moment.
        connected_s: How long the connection has been up, None if it is not.
        last_data_age_s: Since the last frame, None if there was none.
        loop_age_s: Since the last turn of `run`: an answer proves the process, this proves the reader.
        reconnects: Connections that were up and ended.
        last_reason: Why the last connection or attempt ended.
        symbols: How many this feed owns.
    """

    state: str
    frames: int
    bytes: int
    rows: int
    ignored: int
    dead_letters: int
    gathered: int
    connected_s: float | None
    last_data_age_s: float | None
    loop_age_s: float
    reconnects: int
    last_reason: str
    symbols: int


class _Sink:
    """One connection's reports, put into the session's inbox under its number."""

    def __init__(self, session: FeedSession, connection: int) -> None:
        self._session = session
        self._connection = connection

    def on_frames(self, frames: list[bytes]) -> None:
        self._session.post(machine.Frames(self._connection, frames, self._session.clock.now_us()))

    def on_pong(self, payload: bytes) -> None:
        self._session.post(machine.Pong(self._connection))

    def on_closed(self, reason: str) -> None:
        self._session.post(machine.Closed(self._connection, reason))


class FeedSession:
    """Feed `index` of an exchange: records the symbols whose partition p has p mod connections = index.

    Args:
        settings: All settings.
        exchange: Name in `settings.exchanges`.
        index: From 0 to `connections` - 1.
        producer: Where records go; used from the event loop's thread only.
        clock: Time.
        connect: A transport's `connect`; None takes the one that the settings name.
        ask: Asks the exchange about the feed's symbols, as `instruments.fetch_instruments` does by REST.
        uniform: Source of the reconnect delays' jitter.
    """

    def __init__(
        self,
        settings: Settings,
        exchange: str,
        index: int,
        producer: Producer,
        clock: Clock | None = None,
        *,
        connect: Connect | None = None,
        ask: Callable[[], Awaitable[dict[str, Instrument]]] | None = None,
        uniform: Callable[[float, float], float] | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self._exchange_settings = settings.exchanges.enabled()[exchange]
        self._settings = settings
        self._exchange = exchange
        self._index = index
        self._producer = producer
        self._adapter = adapter_named(exchange)
        self._partitions = settings.kafka.partitions
        symbols = self._own_symbols()
        partitions = tuple(partition_of(exchange, symbol, self._partitions) for symbol in symbols)
        self._subscription = Subscription(self._exchange_settings.channels, symbols, partitions)
        self._topics = {
            channel: topic_name(settings.kafka.topic_prefix, self._adapter.asset_class, channel, exchange)
            for channel in self._subscription.channels
        }
        self._connect = connect or transport_named(settings.feed.transport)
        self._tls = tls_context(settings.tls.ca_file)
        self._machine = machine.Connection(settings.feed, uniform or random.SystemRandom().uniform)
        self._decoder: FrameDecoder = self._adapter.decoder(self._subscription)
        self._instruments: dict[str, Instrument] = {}
        self._ask = ask or self._ask_by_rest
        self._inbox: deque[machine.Event] = deque()
        self._wake = asyncio.Event()
        self._transport: Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._broken: BaseException | None = None
        self._done = asyncio.Event()
        self._turn_s = self.clock.monotonic_s()
        self._frames = self._bytes = self._rows = self._ignored = self._dead = 0
        labels = (exchange, str(index))
        self._frames_metric = metrics.FEED_FRAMES.labels(*labels)
        self._rows_metric = {
            channel: metrics.FEED_ROWS.labels(*labels, channel, self._adapter.asset_class)
            for channel in self._subscription.channels
        }
        self._bytes_metric = metrics.FEED_BYTES.labels(*labels)
        self._age_metric = metrics.FEED_DATA_AGE.labels(*labels)
        self._ignored_metric = metrics.FEED_IGNORED.labels(*labels)
        self._outcome_metric = {
            outcome: metrics.FEED_CONNECTS.labels(*labels, outcome) for outcome in ("opened", "failed")
        }

    def _own_symbols(self) -> tuple[str, ...]:
        connections = self._exchange_settings.connections
        return tuple(
            symbol
            for symbol in self._exchange_settings.symbols
            if partition_of(self._exchange, symbol, self._partitions) % connections == self._index
        )

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that this feed owns."""
        return self._subscription.symbols

    async def run(self) -> None:
        """Record until drained. Trouble outside never ends it; what it raises is a programming error."""
        asking = asyncio.create_task(self._ask_for_instruments())
        try:
            if self.symbols:
                await asyncio.wait({asking}, timeout=INSTRUMENTS_WAIT_S)
                self.post(machine.Started())
            await self._turn_until_drained()
        finally:
            asking.cancel()
            if self._opening is not None:
                self._opening.cancel()
            if self._transport is not None:
                self._transport.cut()
            self._done.set()

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Stop reading, publish all that was gathered, flush; returns whether Kafka has everything.

        Args:
            timeout_s: For the flush; None takes the settings' drain timeout less what closing may take.
        """
        self.post(machine.DrainRequested())
        await self._done.wait()
        limit = self._settings.supervision.drain_timeout_s / 2 if timeout_s is None else timeout_s
        return await asyncio.to_thread(self._producer.flush, limit)

    def status(self) -> FeedStatus:
        """Return counts and ages; safe to call from another thread."""
        now_s = self.clock.monotonic_s()
        opened_s, data_s = self._machine.opened_s, self._machine.last_data_s
        return FeedStatus(
            state=self._machine.state if self.symbols else "idle",
            frames=self._frames,
            bytes=self._bytes,
            rows=self._rows,
            ignored=self._ignored,
            dead_letters=self._dead,
            gathered=self._machine.gathered,
            connected_s=None if opened_s is None else now_s - opened_s,
            last_data_age_s=None if data_s is None else now_s - data_s,
            loop_age_s=now_s - self._turn_s,
            reconnects=self._machine.reconnects,
            last_reason=self._machine.last_reason,
            symbols=len(self.symbols),
        )

    def post(self, event: machine.Event) -> None:
        """Put an event into the inbox; from the event loop's thread."""
        self._inbox.append(event)
        self._wake.set()

    async def _turn_until_drained(self) -> None:
        loop = asyncio.get_running_loop()
        while self._machine.state != "drained":
            due_s = self._machine.due_s
            delay_s = POLL_S if due_s is None else min(POLL_S, due_s - self.clock.monotonic_s())
            timer = loop.call_later(max(delay_s, 0.0), self._wake.set)
            await self._wake.wait()
            timer.cancel()
            self._wake.clear()
            self._turn_s = self.clock.monotonic_s()
            if self._broken is not None:
                raise self._broken
            if not self._inbox:
                self._handle(machine.Tick())
            while self._inbox:
                self._handle(self._inbox.popleft())
            self._producer.poll(0.0)
            if self._machine.last_data_s is not None:
                self._age_metric.set(self._turn_s - self._machine.last_data_s)

    def _handle(self, event: machine.Event) -> None:
        if isinstance(event, machine.DrainRequested) and self._opening is not None:
            self._opening.cancel()
        for instruction in self._machine.handle(event, self.clock.monotonic_s()):
            match instruction:
                case machine.Publish(connection, gathered):
                    self._publish(connection, gathered)
                case machine.Open(connection):
                    self._decoder = self._adapter.decoder(self._subscription)
                    self._decoder.learn(self._instruments)
                    self._opening = asyncio.create_task(self._open(connection))
                    self._opening.add_done_callback(self._opened)
                case machine.Ping(connection) if self._transport is not None:
                    self._transport.ping(str(connection).encode())
                case machine.Close(_, reason, cut) if self._transport is not None:
                    if cut:
                        self._transport.cut()
                    else:
                        self._transport.close(_CLOSE_NORMAL, "")
                    _log.info("feed_closing", reason=reason, cut=cut, feed=self._index)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        """Let a programming error in `_open` end `run`, instead of leaving a feed that connects for ever."""
        if not opening.cancelled() and opening.exception() is not None:
            self._broken = opening.exception()
            self._wake.set()

    async def _open(self, connection: int) -> None:
        endpoint = Endpoint(
            self._adapter.stream_url(self._exchange_settings, self._subscription),
            self._tls,
            self._settings.feed.connect_timeout_s,
            self._settings.feed.max_frame_bytes,
        )
        try:
            transport = await self._connect(endpoint, _Sink(self, connection))
        except ExchangeUnavailable as error:
            self._outcome_metric["failed"].inc()
            _log.warning("feed_connect_failed", reason=str(error), feed=self._index)
            self.post(machine.Failed(connection, str(error)))
        except asyncio.CancelledError:
            self.post(machine.Failed(connection, "given up"))
            raise
        else:
            self._transport = transport
            for message in self._adapter.subscribe_messages(self._subscription):
                transport.send_text(message)
            self._outcome_metric["opened"].inc()
            _log.info("feed_opened", connection=connection, feed=self._index, symbols=len(self.symbols))
            self.post(machine.Opened(connection))
        finally:
            self._opening = None

    def _publish(self, connection: int, gathered: Gathered) -> None:
        decoded = self._decoder.decode(gathered.frames, gathered.received_us)
        for channel, batch in decoded.batches.items():
            table = model.CHANNELS[channel].table
            for partition, rows in split_by_partition(batch, self._exchange, self._partitions):
                value, headers = encode_rows(table, rows)
                self._producer.publish(self._topics[channel], partition, value, headers, rows.num_rows)
            self._rows += batch.num_rows
            self._rows_metric[channel].inc(batch.num_rows)
        for dead in decoded.dead:
            source = f"feed:{self._exchange}:{self._index}/{connection}"
            self._producer.dead_letter(self._exchange, dead.raw, dead.reason, source=source, at_us=dead.received_us)
        size = sum(map(len, gathered.frames))
        self._frames += len(gathered.frames)
        self._bytes += size
        self._bytes_metric.inc(size)
        self._dead += len(decoded.dead)
        self._ignored += decoded.ignored
        self._frames_metric.inc(len(gathered.frames))
        self._ignored_metric.inc(decoded.ignored)
        if SHUTDOWN in decoded.events:
            self.post(machine.ShutdownAnnounced(connection))

    async def _ask_by_rest(self) -> dict[str, Instrument]:
        return await fetch_instruments(self._adapter, self._exchange_settings.rest_url, self._tls, self.symbols)

    async def _ask_for_instruments(self) -> None:
        """Fetch once, trying again for ever; the decoder guesses until then."""
        delay_s = self._settings.feed.backoff_initial_s
        while self.symbols and not self._instruments:
            try:
                self._instruments = await self._ask()
                self._decoder.learn(self._instruments)
                return
            except ExchangeUnavailable as error:
                _log.warning("instruments_unavailable", reason=str(error), feed=self._index)
            await asyncio.sleep(delay_s)
            delay_s = min(self._settings.feed.backoff_max_s, delay_s * 2)
