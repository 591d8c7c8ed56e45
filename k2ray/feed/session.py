"""2. A feed: runs the machine of its connections with a transport and hands what it publishes to the publisher.

The shell around `rotation.py`: sinks put events into an inbox, `run` takes them out, carries out the instructions,
and sleeps until the machine's next due time. One turn handles at most a read or two of the socket, so the loop stays
responsive. An actor gives it a process (`actors/feed.py`); tests run it in theirs.

Next in the flow: 3, `connection.py`; frames go through `publish.py` to 4, `exchanges/binance.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from k2ray import metrics
from k2ray.clock import Clock, SystemClock
from k2ray.errors import ExchangeUnavailable, SettingsError, TooOften
from k2ray.exchanges import adapter as adapter_named
from k2ray.exchanges.base import SHUTDOWN, Instrument, Subscription
from k2ray.feed import events
from k2ray.feed.connection import Habits
from k2ray.feed.gather import Gathered
from k2ray.feed.handover import Handover
from k2ray.feed.instruments import fetch_instruments
from k2ray.feed.outbox import Outbox
from k2ray.feed.publish import Producer, Publisher
from k2ray.feed.rotation import OVERLAP_S, Rotation
from k2ray.feed.status import FeedMetrics, FeedStatus, describe
from k2ray.feed.transport import Connect, Endpoint, Transport, tls_context, transport_named
from k2ray.log.partition import share_of
from k2ray.logs import get_logger
from k2ray.settings import Settings
from k2ray.wire.encoder import ARROW, RowEncoder

POLL_S = 0.05
"""Longest sleep: delivery reports and the spool's replay want to be looked at some times a second."""

INSTRUMENTS_WAIT_S = 2.0
"""How long the first connection waits for the exchange's own word on its symbols."""

UNKNOWN_ASK_S = 600.0
"""How often the exchange is asked again about symbols that it did not know: it may list them later."""

SHOW_EVERY_S = 0.25
"""How often the gauges are set."""

_CLOSE_NORMAL = 1000
_PING = b"k2ray"

_log = get_logger(__name__)


@dataclass
class _Line:
    """One connection's I/O, from its `Open` to its `Failed` or `Closed`."""

    outbox: Outbox
    transport: Transport | None = None
    opening: asyncio.Task[None] | None = field(default=None, repr=False)


class _Sink:
    """One connection's reports, put into the session's inbox under its number."""

    def __init__(self, session: FeedSession, connection: int) -> None:
        self._session = session
        self._connection = connection

    def on_frames(self, frames: list[bytes]) -> None:
        self._session.post(events.Frames(self._connection, frames, self._session.clock.now_us()))

    def on_pong(self, payload: bytes) -> None:
        self._session.post(events.Pong(self._connection))

    def on_closed(self, reason: str) -> None:
        self._session.post(events.Closed(self._connection, reason))


Permit = Callable[[str, int], Awaitable[None]]
"""`permit(resource, amount)` returns when the exchange's limit (`exchanges/limits.py`) allows so much more."""


Ban = Callable[[str, float], Awaitable[None]]
"""`ban(resource, for_s)`: the exchange wants to be left alone for so long, and nobody is permitted any before."""


async def _no_limit(resource: str, amount: float) -> None:
    """Let everybody go at once; nobody is told of a ban."""


class FeedSession:
    """Feed `index` of an exchange: records the symbols whose partition p has p mod connections = index.

    Args:
        settings: All settings.
        exchange: Name in `settings.exchanges`.
        index: From 0 to `connections` - 1.
        producer: Where records go; used from the event loop's thread only.
        clock: Time.
        copy: 2 for the second of two feeds with the same symbols.
        connect: A transport's `connect`; None takes the one that the settings name.
        ask: Asks the exchange about the feed's symbols, as `instruments.fetch_instruments` does by REST.
        uniform: Source of the jitter of reconnects and rotations.
        permit: Waits until the exchange's limits allow a connect or a REST request.
        ban: Takes note that the exchange refused one for now.
        encoder: How rows look in Kafka.
        overlap_s: Shortest time that both connections of a rotation deliver.

    Raises:
        SettingsError: More streams than one connection carries.
    """

    def __init__(
        self,
        settings: Settings,
        exchange: str,
        index: int,
        producer: Producer,
        clock: Clock | None = None,
        *,
        copy: int = 1,
        connect: Connect | None = None,
        ask: Callable[[], Awaitable[dict[str, Instrument]]] | None = None,
        uniform: Callable[[float, float], float] | None = None,
        permit: Permit | None = None,
        ban: Ban | None = None,
        encoder: RowEncoder = ARROW,
        overlap_s: float = OVERLAP_S,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self._exchange_settings = settings.exchanges.enabled()[exchange]
        self._settings = settings
        self._exchange = exchange
        self._feed = str(index) if copy == 1 else f"{index}:{copy}"
        self._producer = producer
        self._adapter = adapter_named(exchange)
        self._subscription = self._own_subscription(index)
        self._publisher = Publisher(settings, self._adapter, self._feed, self._subscription, producer, encoder)
        self._connect = connect or transport_named(settings.feed.transport)
        self._tls = tls_context(settings.tls.ca_file, settings.tls.crl_file)
        habits = Habits(self._adapter.heartbeat, self._adapter.lifetime_s, self._adapter.question)
        chance = uniform or random.SystemRandom().uniform
        self._machine = Rotation(settings.feed, chance, habits, overlap_s=overlap_s)
        self._ask = ask or self._ask_by_rest
        self._permit = permit or _no_limit
        self._ban = ban or _no_limit
        self._instruments: dict[str, Instrument] = {}
        self._answered = asyncio.Event()
        self._inbox: deque[events.Event] = deque()
        self._wake = asyncio.Event()
        self._lines: dict[int, _Line] = {}
        self._broken: BaseException | None = None
        self._done = asyncio.Event()
        self._turn_s = self.clock.monotonic_s()
        self._shown_s = float("-inf")
        self._metrics = FeedMetrics(exchange, self._feed)
        self._outcome_metric = {
            outcome: metrics.FEED_CONNECTS.labels(exchange, self._feed, outcome) for outcome in ("opened", "failed")
        }

    def _own_subscription(self, index: int) -> Subscription:
        chosen, partitions = self._exchange_settings, self._settings.kafka.partitions
        share = share_of(self._exchange, chosen.symbols, partitions, chosen.connections, index)
        streams = len(share) * len(chosen.channels)
        if streams > self._adapter.max_streams:
            raise SettingsError(
                f"exchanges.{self._exchange}.connections: feed {index} would carry {streams} streams, "
                f"the exchange allows {self._adapter.max_streams} on a connection; raise it"
            )
        return Subscription(chosen.channels, tuple(share), tuple(share.values()))

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that this feed owns."""
        return self._subscription.symbols

    async def run(self) -> None:
        """Record until drained. Trouble outside never ends it; what it raises is a programming error."""
        asking = asyncio.create_task(self._ask_for_instruments())
        try:
            if self.symbols:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._answered.wait(), INSTRUMENTS_WAIT_S)
                self.post(events.Started())
            await self._turn_until_drained()
        finally:
            asking.cancel()
            for line in self._lines.values():
                if line.opening is not None:
                    line.opening.cancel()
                if line.transport is not None:
                    line.transport.cut()
            self._metrics.show(self.status())
            self._done.set()

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Stop reading, publish all that was gathered, flush; returns whether Kafka has everything.

        Args:
            timeout_s: For the flush; None takes the settings' drain timeout less what closing may take.
        """
        self.post(events.DrainRequested())
        await self._done.wait()
        limit = self._settings.supervision.drain_timeout_s / 2 if timeout_s is None else timeout_s
        return await asyncio.to_thread(self._producer.flush, limit)

    def rotate(self) -> str:
        """Replace the connection now, make before break; returns what becomes of the wish, for people."""
        if not self.symbols:
            return "nothing to rotate: this feed owns no symbol"
        if self._machine.rising is not None:
            return "a rotation is under way already"
        if self._machine.serving.state != "open":
            return "no connection is up; a new one is being tried anyway"
        self.post(events.RotationRequested(events.OPERATOR))
        return "rotating"

    def status(self) -> FeedStatus:
        """Return counts and ages; safe to call from another thread."""
        unknown = self._unknown_symbols() if self._answered.is_set() else ()
        now_s = self.clock.monotonic_s()
        return describe(self._machine, self._publisher, len(self.symbols), now_s, self._turn_s, unknown)

    def post(self, event: events.Event) -> None:
        """Put an event into the inbox; from the event loop's thread."""
        self._inbox.append(event)
        self._wake.set()

    async def _turn_until_drained(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._machine.drained:
            due = [self._machine.due_s, *(line.outbox.due_s for line in self._lines.values())]
            due_s = min((time for time in due if time is not None), default=None)
            delay_s = POLL_S if due_s is None else min(POLL_S, due_s - self.clock.monotonic_s())
            timer = loop.call_later(max(delay_s, 0.0), self._wake.set)
            await self._wake.wait()
            timer.cancel()
            self._wake.clear()
            self._turn_s = self.clock.monotonic_s()
            if self._broken is not None:
                raise self._broken
            if not self._inbox:
                self._handle(events.Tick())
            while self._inbox:
                self._handle(self._inbox.popleft())
            for line in self._lines.values():
                self._send(line)
            self._producer.poll(0.0)
            if self._turn_s - self._shown_s >= SHOW_EVERY_S:
                self._shown_s = self._turn_s
                self._metrics.show(self.status())

    def _handle(self, event: events.Event) -> None:
        if isinstance(event, events.DrainRequested):
            for line in self._lines.values():
                if line.opening is not None:
                    line.opening.cancel()
        for instruction in self._machine.handle(event, self.clock.monotonic_s()):
            self._carry_out(instruction)
        if isinstance(event, events.Closed):
            _log.info("feed_closed", connection=event.connection, reason=event.reason, feed=self._feed)
        if isinstance(event, events.Failed | events.Closed):
            self._lines.pop(event.connection, None)
            self._publisher.end(event.connection)
        self._follow_rotation()

    def _carry_out(self, instruction: events.Instruction) -> None:
        match instruction:
            case events.Publish(connection, gathered):
                self._publish(connection, gathered)
            case events.Open(connection):
                self._publisher.begin(connection)
                line = self._lines[connection] = _Line(Outbox(self._exchange_settings.limits.messages_per_s))
                line.opening = asyncio.create_task(self._open(connection, line))
                line.opening.add_done_callback(self._opened)
            case events.Ping(connection):
                self._lines[connection].outbox.ping()
            case events.Say(connection, text):
                self._lines[connection].outbox.say(text)
            case events.Close(connection, reason, cut):
                transport = self._lines[connection].transport
                assert transport is not None
                if cut:
                    transport.cut()
                else:
                    transport.close(_CLOSE_NORMAL, "")
                _log.info("feed_closing", connection=connection, reason=reason, cut=cut, feed=self._feed)

    def _send(self, line: _Line) -> None:
        if line.transport is not None:
            for message in line.outbox.take(self.clock.monotonic_s()):
                if message is None:
                    line.transport.ping(_PING)
                else:
                    line.transport.send_text(message)

    def _follow_rotation(self) -> None:
        """Let the publisher compare the two connections of a rotation while there are two."""
        rising, handover = self._machine.rising, self._publisher.handover
        if rising is None:
            self._publisher.handover = None
        elif rising.connection and (handover is None or handover.new != rising.connection):
            self._publisher.handover = Handover(self._machine.serving.connection, rising.connection)
            _log.info("feed_rotating", old=self._machine.serving.connection, new=rising.connection, feed=self._feed)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        """Let a programming error in `_open` end `run`, instead of leaving a feed that connects for ever."""
        if not opening.cancelled() and opening.exception() is not None:
            self._broken = opening.exception()
            self._wake.set()

    async def _open(self, connection: int, line: _Line) -> None:
        endpoint = Endpoint(
            self._adapter.stream_url(self._exchange_settings, self._subscription),
            self._tls,
            self._settings.feed.connect_timeout_s,
            self._settings.feed.max_frame_bytes,
        )
        try:
            await self._permit("connects", 1)
            transport = await self._connect(endpoint, _Sink(self, connection))
        except ExchangeUnavailable as error:
            self._outcome_metric["failed"].inc()
            _log.warning("feed_connect_failed", reason=str(error), feed=self._feed)
            await self._stay_away("connects", error)
            self.post(events.Failed(connection, str(error)))
        except asyncio.CancelledError:
            self.post(events.Failed(connection, "given up"))
            raise
        else:
            line.transport = transport
            for message in self._adapter.subscribe_messages(self._subscription):
                line.outbox.say(message)
            self._outcome_metric["opened"].inc()
            _log.info("feed_opened", connection=connection, feed=self._feed, symbols=len(self.symbols))
            self.post(events.Opened(connection))
        finally:
            line.opening = None

    def _publish(self, connection: int, gathered: Gathered) -> None:
        decoded = self._publisher.publish(connection, gathered)
        if decoded.subscribed is not None:
            self.post(events.Subscribed(connection, decoded.subscribed))
        if SHUTDOWN in decoded.events:
            self.post(events.ShutdownAnnounced(connection))
        handover = self._publisher.handover
        if handover is not None:
            self.post(events.CaughtUp(handover.new, handover.caught_up))

    async def _stay_away(self, resource: str, error: ExchangeUnavailable) -> None:
        """Tell all feeds of this address what the exchange said, if it wants to be left alone."""
        if isinstance(error, TooOften):
            await self._ban(resource, error.after_s)

    async def _ask_by_rest(self) -> dict[str, Instrument]:
        rest_url = self._exchange_settings.rest_url
        return await fetch_instruments(self._adapter, rest_url, self._tls, self._unknown_symbols(), self._permit)

    def _unknown_symbols(self) -> tuple[str, ...]:
        """Return the symbols of which the exchange has said nothing."""
        return tuple(symbol for symbol in self.symbols if symbol not in self._instruments)

    async def _ask_for_instruments(self) -> None:
        """Fetch until the exchange knows all symbols, trying again for ever; the decoder guesses until then."""
        delay_s = self._settings.feed.backoff_initial_s
        while self._unknown_symbols():
            try:
                self._instruments = {**self._instruments, **await self._ask()}
            except ExchangeUnavailable as error:
                _log.warning("instruments_unavailable", reason=str(error), feed=self._feed)
                await self._stay_away("weight", error)
                await asyncio.sleep(delay_s)
                delay_s = min(self._settings.feed.backoff_max_s, delay_s * 2)
                continue
            self._publisher.learn(self._instruments)
            self._answered.set()
            if self._unknown_symbols():
                await asyncio.sleep(UNKNOWN_ASK_S)
