"""What a feed says about itself: its status as values, and the same as metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

from k2ray import metrics
from k2ray.feed.events import REASONS
from k2ray.feed.publish import Publisher
from k2ray.feed.rotation import Rotation

STATES = ("idle", "waiting", "connecting", "open", "closing", "drained")


@dataclass(frozen=True)
class FeedStatus:
    """What a feed says about itself; counts are since its start.

    Attributes:
        state: Of the connection that the feed relies on (`connection.Connection`), or `idle` without symbols.
        ready: Whether a connection delivers and answers, or there is nothing to record.
        rotating: Whether another connection is being brought up beside it.
        frames, bytes: Received.
        rows: Handed to the producer.
        ignored, dead_letters: Frames that became no row.
        gathered: Frames held at the moment.
        connected_s: How long the connection has been up, None if it is not.
        last_data_age_s: Since the last frame, None if there was none.
        last_pong_age_s: Since the exchange last answered a ping on this connection, None if it has not.
        loop_age_s: Since the last turn of `run`: an answer proves the process, this proves the reader.
        reconnects: Connections that were up and ended before another one delivered.
        rotations: Reason -> completed rotations.
        pings, pongs: Sent by us, answered.
        stale_probes: Times that a connection was silent for too long and was asked.
        last_reason: Why the last connection or attempt ended, or was replaced.
        symbols: How many this feed owns.
        unknown_symbols: Those that the exchange says it does not know.
    """

    state: str
    ready: bool
    rotating: bool
    frames: int
    bytes: int
    rows: int
    ignored: int
    dead_letters: int
    gathered: int
    connected_s: float | None
    last_data_age_s: float | None
    last_pong_age_s: float | None
    loop_age_s: float
    reconnects: int
    pings: int
    pongs: int
    stale_probes: int
    last_reason: str
    symbols: int
    rotations: dict[str, int] = field(default_factory=dict)
    unknown_symbols: tuple[str, ...] = ()


def describe(
    machine: Rotation,
    publisher: Publisher,
    symbols: int,
    now_s: float,
    turn_s: float,
    unknown_symbols: tuple[str, ...] = (),
) -> FeedStatus:
    """Return the status; only reads, so any thread may ask.

    Args:
        machine: The feed's connections.
        publisher: Its counts.
        symbols: How many it owns.
        now_s: The monotonic clock.
        turn_s: When its loop last turned.
        unknown_symbols: Those of them that the exchange does not know.
    """
    serving = machine.serving
    opened_s, pong_s = serving.opened_s, serving.last_pong_s
    data_s = max((item.last_data_s for item in machine.connections if item.last_data_s is not None), default=None)
    return FeedStatus(
        state=machine.state if symbols or machine.drained else "idle",
        ready=machine.ready or not symbols,
        rotating=machine.rising is not None,
        frames=publisher.frames,
        bytes=publisher.bytes,
        rows=publisher.rows,
        ignored=publisher.ignored,
        dead_letters=publisher.dead,
        gathered=machine.gathered,
        connected_s=None if opened_s is None else now_s - opened_s,
        last_data_age_s=None if data_s is None else now_s - data_s,
        last_pong_age_s=None if pong_s is None else now_s - pong_s,
        loop_age_s=now_s - turn_s,
        reconnects=machine.reconnects,
        pings=machine.tally.pings,
        pongs=machine.tally.pongs,
        stale_probes=machine.tally.probes,
        last_reason=machine.last_reason,
        symbols=symbols,
        rotations=dict(machine.rotations),
        unknown_symbols=unknown_symbols,
    )


class FeedMetrics:
    """A feed's status as metrics.

    Args:
        exchange, feed: Labels.
    """

    def __init__(self, exchange: str, feed: str) -> None:
        labels = (exchange, feed)
        self._states = {state: metrics.FEED_CONNECTION.labels(*labels, state) for state in STATES}
        self._ready = metrics.FEED_READY.labels(*labels)
        self._data_age = metrics.FEED_DATA_AGE.labels(*labels)
        self._pong_age = metrics.FEED_PONG_AGE.labels(*labels)
        self._connection_age = metrics.FEED_CONNECTION_AGE.labels(*labels)
        self._rotations = {reason: metrics.FEED_ROTATIONS.labels(*labels, reason) for reason in REASONS}
        self._reconnects = metrics.FEED_RECONNECTS.labels(*labels)
        self._pings = metrics.FEED_PINGS.labels(*labels, "sent")
        self._pongs = metrics.FEED_PINGS.labels(*labels, "answered")
        self._probes = metrics.FEED_STALE_PROBES.labels(*labels)
        self._before: FeedStatus | None = None

    def show(self, status: FeedStatus) -> None:
        """Set the gauges, and raise the counters by what came since the last call."""
        before, self._before = self._before, status
        if before is None or before.state != status.state:
            for state, gauge in self._states.items():
                gauge.set(state == status.state)
        self._ready.set(status.ready)
        if status.last_data_age_s is not None:
            self._data_age.set(status.last_data_age_s)
        if status.last_pong_age_s is not None:
            self._pong_age.set(status.last_pong_age_s)
        self._connection_age.set(status.connected_s or 0.0)
        self._reconnects.inc(status.reconnects - (before.reconnects if before else 0))
        self._pings.inc(status.pings - (before.pings if before else 0))
        self._pongs.inc(status.pongs - (before.pongs if before else 0))
        self._probes.inc(status.stale_probes - (before.stale_probes if before else 0))
        for reason, counter in self._rotations.items():
            counter.inc(status.rotations.get(reason, 0) - (before.rotations.get(reason, 0) if before else 0))
