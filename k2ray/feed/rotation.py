"""Make before break: a feed's connection and the one that replaces it, as a pure state machine over two `Connection`s.

`serving` is the connection that the feed relies on. To rotate, `rising` is opened beside it. Only when the new one is
known to deliver, both have overlapped for `OVERLAP_S`, and the old one has delivered everything that came before the
new one's first rows (`CaughtUp`), the new one takes over; the old one then is `leaving`: it is closed and read to its
end. Both publish all they receive; the ledger drops what came twice. In return for what `connection.py` asks:

- a rotation never closes the old socket before the new one delivers; a new one that never comes up is tried again with
  backoff for as long as the old one lives; if the old one dies meanwhile, the new one is the reconnect;
- at most two sockets at any time: what wants to rotate while the old one is still leaving waits for its end;
- every frame is published exactly once; until drained, the feed always gets to an open connection again.

Why: its age (`schedule`, or before the exchange's own `lifetime`), an announced `shutdown`, an `operator`, a missed
pong (`heartbeat`), or silence that a probe did not explain (`stale`). A connection that does not answer is kept until
the new one delivers as well: where only the network had a pause, it loses nothing.

Next in the flow: `session.py`, the shell around this.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

from k2ray.feed.connection import STABLE_AFTER_S, Connection, Habits, Tally
from k2ray.feed.events import (
    REASONS,
    CaughtUp,
    Closed,
    CloseRequested,
    Drained,
    DrainRequested,
    Event,
    Failed,
    Instruction,
    Replace,
    RotationRequested,
    Started,
    Tick,
)
from k2ray.settings import Feed

OVERLAP_S = 2.0
"""Two ways from one exchange differ by less in how late they are: what was sent before the new one listened comes by
the old one within it."""

OVERLAP_MAX_S = 15.0
"""Longest wait for the old connection to catch up: beyond, it lacks something for good, and a gap shows it."""


class Rotation:
    """Decides what a feed's sockets do next; see the module's docstring for what it promises.

    Args:
        settings: Intervals and limits.
        uniform: `uniform(low, high)` gives a random number between them; the jitter.
        habits: The exchange's.
        overlap_s: Shortest time that both connections deliver.
        overlap_max_s: Longest time that the old one may take to catch up.

    Attributes:
        serving: The connection that the feed relies on.
        rising: The one that shall replace it; None: no rotation is under way.
        leaving: The one that was replaced, until its socket is gone.
        rotations: Reason -> how many were completed.
        reconnects: Connections that were up and ended before another one delivered.
        drained: Nothing is open and nothing is held, for good.
        tally: What its connections count.
        last_reason: Why the last connection or attempt ended, or was to be replaced.
    """

    def __init__(
        self,
        settings: Feed,
        uniform: Callable[[float, float], float],
        habits: Habits | None = None,
        *,
        overlap_s: float = OVERLAP_S,
        overlap_max_s: float = OVERLAP_MAX_S,
    ) -> None:
        self._settings = settings
        self._uniform = uniform
        self._habits = habits or Habits()
        self._numbers = itertools.count(1)
        self._overlap_s = overlap_s
        self._overlap_max_s = max(overlap_s, overlap_max_s)
        self.tally = Tally()
        self.serving = self._new(0)
        self.rising: Connection | None = None
        self.leaving: Connection | None = None
        self.rotations: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self.reconnects = 0
        self.drained = False
        self.last_reason = ""
        self._reason = ""
        self._waiting = ""
        self._caught_up = True
        self._draining = False

    @property
    def connections(self) -> list[Connection]:
        """The one or two machines, the serving one first."""
        return [item for item in (self.serving, self.rising, self.leaving) if item is not None]

    @property
    def state(self) -> str:
        """The serving connection's, or `drained`."""
        return "drained" if self.drained else self.serving.state

    @property
    def ready(self) -> bool:
        """Whether the serving connection is known to deliver and answers."""
        return self.serving.delivering_s is not None and self.serving.state == "open" and not self.serving.suspect

    @property
    def gathered(self) -> int:
        """How many frames are held."""
        return sum(item.gathered for item in self.connections)

    @property
    def due_s(self) -> float | None:
        """When the next `Tick` is wanted at the latest; None: only an event can change anything."""
        times = [item.due_s for item in self.connections]
        if self.rising is not None and self.rising.delivering_s is not None:
            times.append(self.rising.delivering_s + self._wanted_overlap_s)
        known = [time for time in times if time is not None]
        return min(known) if known else None

    def handle(self, event: Event, now_s: float) -> list[Instruction]:
        """Take an event and return what to do, in this order.

        Args:
            event: What happened.
            now_s: The monotonic clock; never smaller than before.
        """
        out: list[Instruction] = []
        addressed: list[Connection] = []
        match event:
            case Started():
                addressed = [self.serving]
            case RotationRequested(reason):
                self._want(reason, now_s, out)
            case CaughtUp(connection, yes):
                if self.rising is not None and self.rising.connection == connection:
                    self._caught_up = yes
            case DrainRequested():
                self._draining = True
                self._waiting = ""
                addressed = self.connections
            case Tick():
                pass
            case _:
                addressed = [item for item in self.connections if item.connection == event.connection]
                if isinstance(event, Closed) and addressed == [self.serving]:
                    self._note_loss(event)
                elif isinstance(event, Failed):
                    self.last_reason = event.reason
        for item in addressed:
            self._tell(item, event, now_s, out)
        for item in self.connections:
            if item not in addressed:
                self._tell(item, Tick(), now_s, out)
        self._settle(now_s, out)
        return out

    def _tell(self, item: Connection, event: Event, now_s: float, out: list[Instruction]) -> None:
        for instruction in item.handle(event, now_s):
            if isinstance(instruction, Replace):
                self._on_replace(item, instruction, now_s, out)
            elif not isinstance(instruction, Drained):
                out.append(instruction)

    def _on_replace(self, item: Connection, word: Replace, now_s: float, out: list[Instruction]) -> None:
        if item is self.serving:
            self.last_reason = word.detail
            self._want(word.reason, now_s, out)
        elif item is self.rising:
            # Not fit to take over: another attempt, with backoff, while the old one goes on.
            self._tell(item, CloseRequested(item.connection, word.detail), now_s, out)

    def _note_loss(self, event: Closed) -> None:
        """Count the end of the serving connection, unless we asked for it or another one delivers already."""
        if self._draining:
            return
        self.last_reason = event.reason
        if self.rising is None or self.rising.delivering_s is None:
            self.reconnects += 1

    def _want(self, reason: str, now_s: float, out: list[Instruction]) -> None:
        """Begin a rotation, or remember that one is wanted, unless a new connection is on its way anyway."""
        if self._draining or self.rising is not None or self.serving.state != "open":
            return
        if self.leaving is not None:
            self._waiting = self._waiting or reason
            return
        self._reason = reason
        self._caught_up = True
        # One that did not last is followed with backoff, or an exchange that announces shutdowns makes a storm.
        age_s = now_s - (self.serving.opened_s if self.serving.opened_s is not None else now_s)
        self.rising = self._new(0 if age_s >= STABLE_AFTER_S else self.serving.failures + 1)
        self.serving.final = True
        self._tell(self.rising, Started(), now_s, out)

    def _settle(self, now_s: float, out: list[Instruction]) -> None:
        """Draw the conclusions, until nothing changes any more."""
        if self.leaving is not None and self.leaving.state == "drained":
            self.leaving = None
        if self.rising is not None and not self._draining:
            if self.serving.state == "drained":
                self._take_over(self.rising)
            elif self._may_take_over(now_s):
                old = self.serving
                self._take_over(self.rising)
                self.leaving = old
                self._tell(old, DrainRequested(f"rotated: {self._reason}"), now_s, out)
        if self._waiting and self.leaving is None and self.rising is None:
            reason, self._waiting = self._waiting, ""
            self._want(reason, now_s, out)
        if self._draining and not self.drained and all(item.state == "drained" for item in self.connections):
            self.drained = True
            out.append(Drained())

    def _take_over(self, new: Connection) -> None:
        """Rely on the new connection."""
        if new.delivering_s is not None:
            self.rotations[self._reason] += 1
        self.serving, self.rising = new, None

    @property
    def _wanted_overlap_s(self) -> float:
        # A connection that does not answer is not waited for.
        return self._overlap_s if self._caught_up or self.serving.suspect else self._overlap_max_s

    def _may_take_over(self, now_s: float) -> bool:
        assert self.rising is not None
        if self.rising.delivering_s is None or self.rising.state != "open" or self.leaving is not None:
            return False
        return now_s >= self.rising.delivering_s + self._wanted_overlap_s

    def _new(self, failures: int) -> Connection:
        return Connection(
            self._settings, self._uniform, self._habits, numbers=self._numbers, failures=failures, tally=self.tally
        )
