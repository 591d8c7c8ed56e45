"""What actors are called: `feed:binance:0#7` is the seventh generation of the first feed of binance.

The part before `#` is the logical name: what is wanted, whoever lives it. Names are unique among the living actors of a
Ray namespace, so a generation's number lets the next one start beside the one it replaces.
"""

from __future__ import annotations

from dataclasses import dataclass

from k2ray.errors import BadInput
from k2ray.model import CHANNELS
from k2ray.settings import Settings

SUPERVISOR = "supervisor"

ROLES = ("feed", "backfill", "writer", "upkeep", "serializer")
"""In the order in which they are drained: whoever produces stops before whoever stores what was produced, and what all
others ask comes last."""


@dataclass(frozen=True, order=True)
class ActorName:
    """One generation of one actor.

    Attributes:
        logical: Role and what it owns, joined by `:`; `feed:binance:0`, `writer:trades`.
        generation: 1 for the first to live.
    """

    logical: str
    generation: int

    @property
    def role(self) -> str:
        """The first part: `feed`, `writer`, `upkeep`."""
        return self.logical.split(":", 1)[0]

    @property
    def owns(self) -> tuple[str, ...]:
        """What comes after the role: exchange, index and (from 2 on) copy of a feed, table of a writer."""
        return tuple(self.logical.split(":")[1:])

    def __str__(self) -> str:
        return f"{self.logical}#{self.generation}"

    @classmethod
    def parse(cls, text: str) -> ActorName:
        """Read `logical#generation`.

        Raises:
            BadInput: This is not a name of ours; leave that actor alone.
        """
        logical, mark, number = text.rpartition("#")
        if not mark or not logical or not number.isdigit():
            raise BadInput(f"{text!r} is not an actor's name (role:what#generation)")
        return cls(logical, int(number))


def wanted_actors(settings: Settings) -> list[str]:
    """Return the logical names of all actors that the settings ask for, in the order in which they start."""
    exchanges = settings.exchanges
    tables = exchanges.tables()
    feeds = [
        f"feed:{name}:{index}" if copy == 1 else f"feed:{name}:{index}:{copy}"
        for name, chosen in exchanges.enabled().items()
        for index in range(chosen.connections)
        for copy in range(1, chosen.redundancy + 1)
    ]
    backfills = [
        f"backfill:{name}"
        for name, chosen in exchanges.enabled().items()
        if settings.backfill.enabled and any(CHANNELS[channel].proves_gaps for channel in chosen.channels)
    ]
    writers, upkeeps = [f"writer:{table}" for table in tables], [f"upkeep:{table}" for table in tables]
    return ["serializer", *writers, *feeds, *backfills, *upkeeps]


def drain_stage(role: str) -> int:
    """Return when a role is drained: 0 first. Roles that nobody knows go last."""
    return ROLES.index(role) if role in ROLES else len(ROLES)
