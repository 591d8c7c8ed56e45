"""3. A feed's connection as a pure state machine: events in, instructions out, no socket, no clock of its own.

The shell (`session.py`) must carry out every instruction in order and must report, for each `Open`, exactly one
`Opened` or `Failed`, and for each `Opened` exactly one `Closed` in the end; it must send `Tick` no later than `due_s`.
In return:

- there are never two sockets: `Open` comes only when none is being opened, open or being closed;
- every frame that was reported is in exactly one `Publish`, frames that arrive after a `Close` included;
- until a drain is asked for, the machine always gets to its next `Open`, after a delay with full jitter.

States: `waiting` (for its next attempt) -> `connecting` -> `open` -> `closing` -> `waiting`; `drained` at the end.

Liveness: a ping every `ping_interval_s` must be answered within `pong_timeout_s`. Without a frame for `stale_after_s`
the peer is probed by a ping: thin symbols are silent, a dead peer does not answer. Only an unanswered ping reconnects.

Events carry the number of the connection they belong to. Make-before-break rotation, which needs two connections at
once, belongs in the class that owns two of these machines; `ShutdownAnnounced` is its event and reconnects until then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from k2ray.feed.gather import Gather, Gathered
from k2ray.settings import Feed

STABLE_AFTER_S = 10.0
"""A connection that lived this long resets the backoff; shorter ones count as failures, or they make a storm."""

CLOSE_TIMEOUT_S = 5.0
"""A close that is not confirmed by then is cut."""


@dataclass(frozen=True)
class Started:
    """The feed begins: the first attempt is due at once."""


@dataclass(frozen=True)
class Opened:
    """The socket of `Open(connection)` is up and subscribed."""

    connection: int


@dataclass(frozen=True)
class Failed:
    """`Open(connection)` came to nothing."""

    connection: int
    reason: str


@dataclass(frozen=True)
class Frames:
    """One read of the socket gave these data frames."""

    connection: int
    frames: Sequence[bytes]
    received_us: int


@dataclass(frozen=True)
class Pong:
    """The peer answered a ping."""

    connection: int


@dataclass(frozen=True)
class Closed:
    """The socket is gone, whoever closed it."""

    connection: int
    reason: str


@dataclass(frozen=True)
class ShutdownAnnounced:
    """The exchange said that it is about to close this connection."""

    connection: int


@dataclass(frozen=True)
class DrainRequested:
    """Stop for good: close, publish what is gathered."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = Started | Opened | Failed | Frames | Pong | Closed | ShutdownAnnounced | DrainRequested | Tick


@dataclass(frozen=True)
class Open:
    """Open a socket and report it under this number."""

    connection: int


@dataclass(frozen=True)
class Ping:
    """Send a ping."""

    connection: int


@dataclass(frozen=True)
class Close:
    """Close the socket (`cut`: without waiting for the peer); report `Closed` when it is gone."""

    connection: int
    reason: str
    cut: bool = False


@dataclass(frozen=True)
class Publish:
    """Decode and publish these frames of one connection."""

    connection: int
    gathered: Gathered


@dataclass(frozen=True)
class Drained:
    """Nothing is open and nothing is held: the feed may end."""


Instruction = Open | Ping | Close | Publish | Drained


class Connection:
    """Decides what a feed's socket does next; see the module's docstring for what it promises.

    Args:
        settings: Intervals and limits.
        uniform: `uniform(low, high)` gives a random number between them; the jitter.
    """

    def __init__(self, settings: Feed, uniform: Callable[[float, float], float]) -> None:
        self._settings = settings
        self._uniform = uniform
        self._gather = Gather(settings.linger_s, settings.linger_idle_s)
        self.state = "waiting"
        self.connection = 0
        self.failures = 0
        self.reconnects = 0
        self.opened_s: float | None = None
        self.last_data_s: float | None = None
        self.last_reason = ""
        self._draining = False
        self._attempt_s: float | None = None
        self._ping_s = 0.0
        self._stale_s = 0.0
        self._pong_by_s: float | None = None
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
            times += [self._ping_s, self._stale_s, self._pong_by_s]
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
                    self._attempt_s = now_s
            case Opened(connection) if connection == self.connection and self.state == "connecting":
                self._on_opened(now_s, out)
            case Pong(connection) if connection == self.connection and self.state == "open":
                self._pong_by_s = None
                self._stale_s = now_s + self._settings.stale_after_s
            case Failed(connection, reason) | Closed(connection, reason) if connection == self.connection:
                self._on_gone(reason, now_s, out)
            case ShutdownAnnounced(connection) if connection == self.connection:
                self._close("the exchange announced a shutdown", now_s, out)
            case DrainRequested():
                self._draining = True
                self._close("draining", now_s, out)
                self._publish(out)
            case _:
                pass  # Tick, or news of a connection that is gone already
        self._on_time(now_s, out)
        return out

    def _on_frames(self, connection: int, frames: Sequence[bytes], received_us: int, now_s: float) -> None:
        self._gather.add(frames, received_us, now_s)
        if connection == self.connection and frames:
            self.last_data_s = now_s
            self._stale_s = now_s + self._settings.stale_after_s

    def _on_opened(self, now_s: float, out: list[Instruction]) -> None:
        self.state = "open"
        self.opened_s = now_s
        self._ping_s = now_s + self._settings.ping_interval_s
        self._stale_s = now_s + self._settings.stale_after_s
        self._pong_by_s = None
        if self._draining:
            self._close("draining", now_s, out)

    def _on_gone(self, reason: str, now_s: float, out: list[Instruction]) -> None:
        if self.state not in {"connecting", "open", "closing"}:
            return
        self._publish(out)
        if self.opened_s is not None and now_s - self.opened_s >= STABLE_AFTER_S:
            self.failures = 0
        if self.opened_s is not None and not self._draining:
            self.reconnects += 1
        if self.state != "closing":
            self.last_reason = reason
        self.opened_s = None
        ceiling = min(self._settings.backoff_max_s, self._settings.backoff_initial_s * 2.0 ** min(self.failures, 32))
        self._attempt_s = now_s + self._uniform(0.0, ceiling)
        self.failures += 1
        self.state = "waiting"

    def _on_time(self, now_s: float, out: list[Instruction]) -> None:
        due = self._gather.due_s
        if due is not None and (now_s >= due or self._draining):
            self._publish(out)
        if self.state == "waiting" and self._draining:
            self.state = "drained"
            out.append(Drained())
        elif self.state == "waiting" and self._attempt_s is not None and now_s >= self._attempt_s:
            self.state = "connecting"
            self.connection += 1
            out.append(Open(self.connection))
        elif self.state == "open":
            self._check_liveness(now_s, out)
        elif self.state == "closing" and now_s >= self._close_by_s:
            self._close_by_s = now_s + CLOSE_TIMEOUT_S
            out.append(Close(self.connection, self.last_reason, cut=True))

    def _check_liveness(self, now_s: float, out: list[Instruction]) -> None:
        if self._pong_by_s is not None:
            if now_s >= self._pong_by_s:
                waited = self._settings.pong_timeout_s
                self._close(f"no pong within {waited:g} s", now_s, out, cut=True)
            return
        if now_s >= self._ping_s or now_s >= self._stale_s:
            self._ping_s = now_s + self._settings.ping_interval_s
            self._pong_by_s = now_s + self._settings.pong_timeout_s
            out.append(Ping(self.connection))

    def _close(self, reason: str, now_s: float, out: list[Instruction], *, cut: bool = False) -> None:
        if self.state != "open":
            return
        self.state = "closing"
        self.last_reason = reason
        self._close_by_s = now_s + CLOSE_TIMEOUT_S
        out.append(Close(self.connection, reason, cut))

    def _publish(self, out: list[Instruction]) -> None:
        gathered = self._gather.take()
        if gathered is not None:
            out.append(Publish(self.connection, gathered))
