"""What a feed's machines are told and what they answer: events of sockets and time in, instructions out.

Events and instructions carry the number of the connection they belong to, since a feed has two at times.

Next in the flow: `connection.py` decides for one socket, `rotation.py` for two; `session.py` carries it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from k2ray.feed.gather import Gathered

SCHEDULE, LIFETIME, SHUTDOWN, OPERATOR, HEARTBEAT, STALE = (
    "schedule",
    "lifetime",
    "shutdown",
    "operator",
    "heartbeat",
    "stale",
)
REASONS = (SCHEDULE, LIFETIME, SHUTDOWN, OPERATOR, HEARTBEAT, STALE)
"""Why a connection is replaced while it is up."""


# --- what happened


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
class Subscribed:
    """The exchange answered `Habits.question`: so many streams."""

    connection: int
    streams: int


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
class CloseRequested:
    """Close this connection and try another one later; what it should have replaced goes on meanwhile."""

    connection: int
    reason: str


@dataclass(frozen=True)
class DrainRequested:
    """Stop for good: close, publish what is gathered."""

    reason: str = "draining"


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class RotationRequested:
    """Replace the connection that serves; for the owner of two."""

    reason: str


@dataclass(frozen=True)
class CaughtUp:
    """Whether the old connection has delivered all that came before the new one's first rows; for the owner of two."""

    connection: int
    yes: bool


OfOne = Opened | Failed | Frames | Pong | Subscribed | Closed | ShutdownAnnounced | CloseRequested | CaughtUp
Event = Started | OfOne | DrainRequested | RotationRequested | Tick


# --- what to do


@dataclass(frozen=True)
class Open:
    """Open a socket and report it under this number."""

    connection: int


@dataclass(frozen=True)
class Ping:
    """Send a ping."""

    connection: int


@dataclass(frozen=True)
class Say:
    """Send this text: what the exchange wants to hear now and then, or a question."""

    connection: int
    text: bytes


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


@dataclass(frozen=True)
class Replace:
    """This connection should make room for another one: a word to the owner, the shell never sees it.

    Attributes:
        connection: Which.
        reason: One of `REASONS`.
        detail: For people.
    """

    connection: int
    reason: str
    detail: str


Instruction = Open | Ping | Say | Close | Publish | Replace | Drained
