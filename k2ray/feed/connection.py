"""3. One connection of a feed as a pure state machine: events in, instructions out, no socket, no clock of its own.

Its owner (`rotation.py`, which owns two of them) passes events on; the shell (`session.py`) carries out every
instruction in order and reports, for each `Open`, exactly one `Opened` or `Failed`, and for each `Opened` exactly one
`Closed` in the end, after which nothing more comes from that socket. In return:

- `Open` comes only when no socket of this machine is being opened, open or being closed;
- every frame that was reported is in exactly one `Publish`, frames that arrive after a `Close` included;
- until a drain is asked for, or the owner lets it end (`final`), the machine always gets to its next `Open`, after a
  delay with full jitter.

States: `waiting` (for its next attempt) -> `connecting` -> `open` -> `closing` -> `waiting`; `drained` at the end.

Liveness: a ping every `ping_interval_s` must be answered within `pong_timeout_s`. Without a frame for `stale_after_s`
the peer is probed by a ping and, where the exchange answers that, asked what is subscribed: thin symbols are silent, a
dead peer does not answer. A connection that was busy and falls silent is replaced even though its peer answers, once:
its successor must have been busy itself before it is judged so. What makes a connection untrustworthy, or too old, is
told to the owner as `Replace`; this machine never gives up a socket that may still deliver.

Delivering: the owner may let go of the old connection only when the new one gets what is sent from now on. No trade of
a thin symbol can be waited for, so the proof is the exchange's answer to the question what is subscribed: whatever it
sends after that answer comes here too. Without an answer the streams in the URL count, once the peer lived for
`pong_timeout_s`; where an exchange has no such question, its first frame or pong.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from k2ray.exchanges.base import Heartbeat
from k2ray.feed.events import (
    HEARTBEAT,
    LIFETIME,
    SCHEDULE,
    SHUTDOWN,
    STALE,
    Close,
    Closed,
    CloseRequested,
    Drained,
    DrainRequested,
    Event,
    Failed,
    Frames,
    Instruction,
    Open,
    Opened,
    Ping,
    Pong,
    Publish,
    Replace,
    Say,
    ShutdownAnnounced,
    Started,
    Subscribed,
)
from k2ray.feed.gather import Gather
from k2ray.settings import Feed

STABLE_AFTER_S = 10.0
"""A connection that lived this long resets the backoff; shorter ones count as failures, or they make a storm."""

CLOSE_TIMEOUT_S = 5.0
"""A close that is not confirmed by then is cut."""

BUSY_FRAMES = 1_000
"""From here on it is known how busy a connection is."""

BUSY_PER_WAIT = 100
"""One with so many frames in each `stale_after_s` is not thin: silent for twice as long, it was forgotten."""

LIFETIME_PART = 0.9
"""Of the lifetime that the exchange allows a connection: then it is replaced, whatever `rotate_every_s` says."""


@dataclass(frozen=True)
class Habits:
    """What an exchange does to every connection.

    Attributes:
        heartbeat: Who proves to whom that it lives.
        lifetime_s: After this long the exchange cuts; None: never.
        question: A text whose answer lists what is subscribed; None: there is none.
    """

    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    lifetime_s: float | None = None
    question: bytes | None = None


@dataclass
class Tally:
    """What the machines of a feed have counted together.

    Attributes:
        pings: Sent.
        pongs: Received.
        probes: How often a connection was silent for too long and was asked.
    """

    pings: int = 0
    pongs: int = 0
    probes: int = 0


class Connection:
    """Decides what one socket after another does next; see the module's docstring for what it promises.

    Args:
        settings: Intervals and limits.
        uniform: `uniform(low, high)` gives a random number between them; the jitter.
        habits: The exchange's.
        numbers: Where the connections' numbers come from; shared by all machines of a feed.
        failures: How many attempts failed before, for the first delay.
        tally: Where it counts.

    Attributes:
        final: When this socket is gone there is no next one.
        suspect: It did not answer in time, or lost subscriptions.
        delivering_s: Since when it is known to deliver.
    """

    def __init__(
        self,
        settings: Feed,
        uniform: Callable[[float, float], float],
        habits: Habits | None = None,
        *,
        numbers: Iterator[int] | None = None,
        failures: int = 0,
        tally: Tally | None = None,
    ) -> None:
        self._settings = settings
        self._uniform = uniform
        self._habits = habits or Habits()
        self._numbers = numbers or itertools.count(1)
        self._gather = Gather(settings.linger_s, settings.linger_idle_s)
        self.state = "waiting"
        self.connection = 0
        self.failures = failures
        self.final = False
        self.suspect = False
        self.opened_s: float | None = None
        self.delivering_s: float | None = None
        self.last_data_s: float | None = None
        self.last_pong_s: float | None = None
        self.last_reason = ""
        self.tally = tally or Tally()
        self._draining = False
        self._attempt_s: float | None = None
        self._ping_s = 0.0
        self._stale_s = 0.0
        self._pong_by_s: float | None = None
        self._pinged_for = HEARTBEAT
        self._replace_s: float | None = None
        self._streams = 0
        self._frames = 0
        self._data_before_s: float | None = None
        self._close_by_s = 0.0

    @property
    def gathered(self) -> int:
        """How many frames are held."""
        return len(self._gather)

    @property
    def due_s(self) -> float | None:
        """When the next `Tick` is wanted at the latest; None: only an event can change anything."""
        times = [self._gather.due_s]
        if self.state == "waiting":
            times.append(self._attempt_s)
        elif self.state == "open":
            times += [self._ping_s, self._stale_s, self._pong_by_s, self._replace_s]
            if self.delivering_s is None and self.opened_s is not None:
                times.append(self.opened_s + self._settings.pong_timeout_s)
        elif self.state == "closing":
            times.append(self._close_by_s)
        known = [time for time in times if time is not None]
        return min(known) if known else None

    def handle(self, event: Event, now_s: float) -> list[Instruction]:
        """Take an event and return what to do, in this order.

        Args:
            event: What happened.
            now_s: The monotonic clock; never smaller than before.
        """
        out: list[Instruction] = []
        match event:
            case Frames(connection, frames, received_us):
                self._on_frames(connection, frames, received_us, now_s)
            case Started():
                if self._attempt_s is None:
                    self._attempt_s = now_s + (self._delay_s(self.failures - 1) if self.failures else 0.0)
            case Opened(connection) if connection == self.connection and self.state == "connecting":
                self._on_opened(now_s, out)
            case Pong(connection) if connection == self.connection and self.state == "open":
                self.last_pong_s = now_s
                self.tally.pongs += 1
                self._on_life(now_s)
            case Subscribed(connection, streams) if connection == self.connection and self.state == "open":
                self._on_subscribed(streams, now_s, out)
            case Failed(connection, reason) | Closed(connection, reason) if connection == self.connection:
                self._on_gone(reason, now_s, out)
            case ShutdownAnnounced(connection) if connection == self.connection and self.state == "open":
                out.append(Replace(connection, SHUTDOWN, "the exchange announced a shutdown"))
            case CloseRequested(connection, reason) if connection == self.connection:
                self._close(reason, now_s, out)
            case DrainRequested(reason):
                self._draining = True
                self._close(reason, now_s, out)
                self._publish(out)
            case _:
                pass  # Tick, or news of a connection that is gone already
        self._on_time(now_s, out)
        return out

    def _on_frames(self, connection: int, frames: Sequence[bytes], received_us: int, now_s: float) -> None:
        self._gather.add(frames, received_us, now_s)
        if connection == self.connection and frames:
            self._data_before_s = self.last_data_s if len(frames) == 1 else now_s
            self.last_data_s = now_s
            self._frames += len(frames)
            self._stale_s = now_s + self._settings.stale_after_s
            if self._habits.heartbeat.client_message is not None:
                self._on_life(now_s)  # its answer is a frame like others

    def _on_life(self, now_s: float) -> None:
        self._pong_by_s = None
        self._stale_s = now_s + self._settings.stale_after_s

    def _on_subscribed(self, streams: int, now_s: float, out: list[Instruction]) -> None:
        self.last_data_s = self._data_before_s  # an answer is life, but no data
        if streams < self._streams:
            self.suspect = True
            out.append(Replace(self.connection, STALE, f"{streams} of {self._streams} streams are left"))
        self._streams = max(self._streams, streams)
        if self.delivering_s is None:
            self.delivering_s = now_s

    def _on_opened(self, now_s: float, out: list[Instruction]) -> None:
        self.state = "open"
        self.opened_s = now_s
        self.last_pong_s = None
        self._frames = 0
        self._stale_s = now_s + self._settings.stale_after_s
        self._ping_s = now_s
        self._replace_s = now_s + self._age_limit_s()[0] * (1 - self._uniform(0.0, self._settings.rotate_jitter))
        if self._draining:
            self._close("draining", now_s, out)
        else:
            self._ping(HEARTBEAT, now_s, out)
            self._ask(out)

    def _on_gone(self, reason: str, now_s: float, out: list[Instruction]) -> None:
        if self.state not in {"connecting", "open", "closing"}:
            return
        self._publish(out)
        if self.opened_s is not None and now_s - self.opened_s >= STABLE_AFTER_S:
            self.failures = 0
        if self.state != "closing":
            self.last_reason = reason
        self.opened_s = self.delivering_s = self._pong_by_s = None
        self.suspect = False
        self._streams = 0
        self._attempt_s = now_s + self._delay_s(self.failures)
        self.failures += 1
        self.state = "waiting"

    def _on_time(self, now_s: float, out: list[Instruction]) -> None:
        due = self._gather.due_s
        if due is not None and (now_s >= due or self._draining):
            self._publish(out)
        if self.state == "waiting" and (self._draining or self.final):
            self._publish(out)
            self.state = "drained"
            out.append(Drained())
        elif self.state == "waiting" and self._attempt_s is not None and now_s >= self._attempt_s:
            self.state = "connecting"
            self.connection = next(self._numbers)
            out.append(Open(self.connection))
        elif self.state == "open":
            self._check_delivery(now_s)
            self._check_liveness(now_s, out)
            self._check_age(now_s, out)
        elif self.state == "closing" and now_s >= self._close_by_s:
            self._close_by_s = now_s + CLOSE_TIMEOUT_S
            out.append(Close(self.connection, self.last_reason, cut=True))

    def _check_delivery(self, now_s: float) -> None:
        if self.delivering_s is not None or self.opened_s is None:
            return
        alive = self.last_pong_s is not None or (self.last_data_s is not None and self.last_data_s >= self.opened_s)
        patient = self._habits.question is not None
        if alive and (not patient or now_s >= self.opened_s + self._settings.pong_timeout_s):
            self.delivering_s = now_s

    def _check_liveness(self, now_s: float, out: list[Instruction]) -> None:
        if self._pong_by_s is not None:
            if now_s >= self._pong_by_s:
                self._pong_by_s = None
                self._stale_s = now_s + self._settings.stale_after_s
                self.suspect = True
                waited = self._settings.pong_timeout_s
                out.append(Replace(self.connection, self._pinged_for, f"no pong within {waited:g} s"))
            return
        if self._is_forgotten(now_s):
            self._frames = 0
            self.suspect = True
            out.append(Replace(self.connection, STALE, "no data on a busy connection, though the peer answers"))
        if now_s >= self._stale_s:
            self.tally.probes += 1
            self._stale_s = now_s + self._settings.stale_after_s
            self._ping(STALE, now_s, out)
            self._ask(out)
        elif now_s >= self._ping_s:
            self._ping(HEARTBEAT, now_s, out)

    def _is_forgotten(self, now_s: float) -> bool:
        """Tell whether data that used to come all the time does not come any more."""
        if self._frames < BUSY_FRAMES or self.last_data_s is None or self.opened_s is None:
            return False
        wait_s = self._settings.stale_after_s
        usual = self._frames * wait_s / max(self.last_data_s - self.opened_s, wait_s)
        return usual >= BUSY_PER_WAIT and now_s >= self.last_data_s + 2 * wait_s

    def _check_age(self, now_s: float, out: list[Instruction]) -> None:
        if self._replace_s is not None and now_s >= self._replace_s:
            self._replace_s = None
            assert self.opened_s is not None
            out.append(Replace(self.connection, self._age_limit_s()[1], f"{now_s - self.opened_s:.0f} s old"))

    def _age_limit_s(self) -> tuple[float, str]:
        """Return how old it may get, before jitter, and the reason that this is."""
        every_s, lifetime_s = self._settings.rotate_every_s, self._habits.lifetime_s
        limit, reason = every_s, SCHEDULE
        if lifetime_s is not None and lifetime_s * LIFETIME_PART < every_s:
            limit, reason = lifetime_s * LIFETIME_PART, LIFETIME
        return limit / self._settings.time_compression, reason

    def _ping(self, why: str, now_s: float, out: list[Instruction]) -> None:
        heartbeat = self._habits.heartbeat
        interval_s = self._settings.ping_interval_s / self._settings.time_compression
        interval_s = min(interval_s, heartbeat.client_interval_s or interval_s)
        # From when it was due, so that what a busy machine is late by does not add up; not from long ago.
        due_s = self._ping_s if why == HEARTBEAT and self._ping_s > now_s - interval_s else now_s
        self._ping_s = due_s + interval_s
        self._pong_by_s = now_s + self._settings.pong_timeout_s
        self._pinged_for = why
        self.tally.pings += 1
        if heartbeat.client_message is None:
            out.append(Ping(self.connection))
        else:
            out.append(Say(self.connection, heartbeat.client_message))

    def _ask(self, out: list[Instruction]) -> None:
        if self._habits.question is not None:
            out.append(Say(self.connection, self._habits.question))

    def _delay_s(self, failures: int) -> float:
        ceiling = self._settings.backoff_initial_s * 2.0 ** min(failures, 32)
        return self._uniform(0.0, min(self._settings.backoff_max_s, ceiling))

    def _close(self, reason: str, now_s: float, out: list[Instruction]) -> None:
        if self.state != "open":
            return
        self.state = "closing"
        self.last_reason = reason
        self._close_by_s = now_s + CLOSE_TIMEOUT_S
        out.append(Close(self.connection, reason, cut=self.suspect))

    def _publish(self, out: list[Instruction]) -> None:
        gathered = self._gather.take()
        if gathered is not None:
            out.append(Publish(self.connection, gathered))
