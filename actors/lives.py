"""What the reconciler is told, what it answers, and what it remembers of each child.

A *child* is a logical name that somebody wants (`feed:binance:0`); a *life* is one generation of it
(`feed:binance:0#7`).

Next in the flow: `actors/reconciler.py` decides with these; `actors/supervisor.py` carries the instructions out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from actors.names import ActorName


class Fault(StrEnum):
    """How a life ended, which decides what comes next."""

    CRASH = "crash"
    """By its own fault: counted, the next one after a backoff."""
    NODE = "node"
    """By the node's (out of memory elsewhere, node lost): the next one after a backoff, not counted."""
    OPERATOR = "operator"
    """It said that only a person may decide: failed at once."""


class Phase(StrEnum):
    """Where a life is."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"


# --- what the reconciler is told


@dataclass(frozen=True)
class Listed:
    """These of our actors are alive, says Ray."""

    names: frozenset[ActorName]


@dataclass(frozen=True)
class Answered:
    """A life answered a health question.

    Attributes:
        name: Who.
        health: At least `pid`, `node`, `turn_age_s` (age of its main loop's last turn) and `turn_limit_s`.
    """

    name: ActorName
    health: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """A life's `run()` is over, or it could not be started or found."""

    name: ActorName
    reason: str
    fault: Fault = Fault.CRASH


# --- what it answers


@dataclass(frozen=True)
class Start:
    """Make a new actor of this name and run it with this release (a name in the wanted state)."""

    name: ActorName
    release: str = ""


@dataclass(frozen=True)
class Attach:
    """Find the living actor of this name and await its `run()`."""

    name: ActorName


@dataclass(frozen=True)
class Ask:
    """Ask its health; whatever comes back is told as `Answered` or `Ended`, silence is not told."""

    name: ActorName


@dataclass(frozen=True)
class Drain:
    """Ask it to finish what it holds and end by itself."""

    name: ActorName
    reason: str


@dataclass(frozen=True)
class Kill:
    """Make sure that its process is gone, by its pid where that is known, then by Ray."""

    name: ActorName
    pid: int | None
    node: str | None
    reason: str


Event = Listed | Answered | Ended
Instruction = Start | Attach | Ask | Drain | Kill


# --- what it remembers


class Cause(StrEnum):
    """Why a life was followed by another one that nobody had planned; a metric's label."""

    CRASH = "crash"
    """Its process died, or its work raised or ended."""
    SILENT = "silent"
    """It answered no health question in time."""
    STUCK = "stuck"
    """It answered, but its main loop did not turn."""
    START = "start"
    """It did not come up in time."""
    MEMORY = "memory"
    """It was over its hard memory limit."""
    NODE = "node"
    """The node ran out of memory, or was lost."""
    OPERATOR = "operator"
    """It met something that only a person may decide."""
    DRAIN = "drain"
    """It failed while it drained, with nothing planned to follow it."""


@dataclass
class Life:
    """One generation that is alive, as far as we know.

    Attributes:
        since_s: When it came into its phase.
        started_s: When we started it, or found it.
        ready_s: Since when it says, without a break, that it works on live data; None: it does not.
        release: What it runs: a name in the wanted state.
    """

    name: ActorName
    phase: Phase
    since_s: float
    heard_s: float
    started_s: float
    release: str = ""
    adopted: bool = False
    attached: bool = False
    asked_s: float | None = None
    ready_s: float | None = None
    health: Mapping[str, Any] = field(default_factory=dict)
    pid: int | None = None
    node: str | None = None

    @property
    def ready(self) -> bool:
        """Whether its newest answer says that it works on live data."""
        return self.ready_s is not None


@dataclass(frozen=True)
class Replacement:
    """A planned change of generation, make before break.

    Attributes:
        generation: The new one's number.
        reason: `memory`, `leak`, `deploy`, `operator`: a metric's label.
        detail: For people.
        release: What the new one runs.
        outcome: `under way`, `done` or `failed`.
        why: Why it failed.
    """

    generation: int
    reason: str
    detail: str
    release: str
    outcome: str = "under way"
    why: str = ""

    @property
    def under_way(self) -> bool:
        """Whether it is not decided yet."""
        return self.outcome == "under way"


@dataclass
class Child:
    """A logical name with its living generations and its history.

    Attributes:
        release: What its next generation runs: the release of the last one that proved itself.
        held: Whether its older generations stay although a newer one works (`Wanted.held`).
        replacement: The newest planned one, decided or under way.
        replacements: `reason/outcome` -> how many.
        replace_at_s: Before then the memory policy leaves it alone.
        restarts_by: Cause -> how many.
        late_starts: Generations in a row that were killed since they were not up in time.
    """

    logical: str
    wanted: bool = True
    lives: dict[int, Life] = field(default_factory=dict)
    generation: int = 0
    release: str = ""
    held: bool = False
    last_reason: str = ""
    failed: bool = False
    crashes: deque[float] = field(default_factory=deque)
    start_at_s: float = 0.0
    replacement: Replacement | None = None
    replacements: Counter[str] = field(default_factory=Counter)
    replace_at_s: float = 0.0
    replace_pause_s: float = 0.0
    restarts_by: Counter[str] = field(default_factory=Counter)
    late_starts: int = 0

    @property
    def restarts(self) -> int:
        """Times that it was started anew without a plan."""
        return self.restarts_by.total()

    @property
    def newest(self) -> Life | None:
        """The living generation with the highest number."""
        return self.lives[max(self.lives)] if self.lives else None

    @property
    def current(self) -> Life | None:
        """The generation that does the work: while another one proves itself beside it, still the old one."""
        running = [life for _, life in sorted(self.lives.items()) if life.phase is Phase.RUNNING]
        return running[0] if running else self.newest

    @property
    def state(self) -> str:
        """In one word, for `status`: starting, running, draining, backoff, failed or stopped."""
        life = self.current
        if life is not None:
            return life.phase.value
        if self.failed:
            return "failed"
        return "backoff" if self.wanted else "stopped"
