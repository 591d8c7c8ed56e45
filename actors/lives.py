"""What the reconciler is told, what it answers, and what it remembers of each child.

A *child* is a logical name that somebody wants (`feed:binance:0`); a *life* is one generation of it
(`feed:binance:0#7`).

Next in the flow: `actors/reconciler.py` decides with these; `actors/supervisor.py` carries the instructions out.
"""

from __future__ import annotations

from collections import deque
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
    """Make a new actor of this name and run it."""

    name: ActorName


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


@dataclass
class Life:
    """One generation that is alive, as far as we know."""

    name: ActorName
    phase: Phase
    since_s: float
    heard_s: float
    adopted: bool = False
    attached: bool = False
    asked_s: float | None = None
    health: Mapping[str, Any] = field(default_factory=dict)
    pid: int | None = None
    node: str | None = None


@dataclass
class Child:
    """A logical name with its living generations and its history."""

    logical: str
    wanted: bool = True
    lives: dict[int, Life] = field(default_factory=dict)
    generation: int = 0
    restarts: int = 0
    last_reason: str = ""
    failed: bool = False
    crashes: deque[float] = field(default_factory=deque)
    start_at_s: float = 0.0

    @property
    def newest(self) -> Life | None:
        """The living generation with the highest number."""
        return self.lives[max(self.lives)] if self.lives else None

    @property
    def state(self) -> str:
        """In one word, for `status`: starting, running, draining, backoff, failed or stopped."""
        life = self.newest
        if life is not None:
            return life.phase.value
        if self.failed:
            return "failed"
        return "backoff" if self.wanted else "stopped"
