"""What the backfill's parts tell each other: what is missing, what to ask for, what was answered, what is given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from k2ray.backfill.spans import Int64s, Span

Stream = tuple[str, str]
"""(channel, symbol)."""


@dataclass(frozen=True)
class Policy:
    """How the planner decides; see `settings.Backfill`, where most of it comes from.

    Attributes:
        grace_s: How long ids may be missing before they are asked for.
        retry_s: Pause before ids that were not answered are asked for again, and before rows that never arrived are.
        lost_after_answers: So many answers without an id make it lost.
        max_gap_ids: A wider gap is absurd.
        tolerance_us: How far event times of neighbours may be out of order.
        commit_timeout_s: Rows in the log that are not committed by then are fetched anew.
    """

    grace_s: float
    retry_s: float
    lost_after_answers: int
    max_gap_ids: int
    tolerance_us: int = 2_000_000
    commit_timeout_s: float = 600.0


@dataclass(frozen=True)
class Hole:
    """Missing ids between two rows, or above the newest.

    Attributes:
        first, last: The ids.
        since_us: Event time of the row below.
        until_us: Event time of the row above; None above the newest.
        space: The numbering, as the ledger names it.
    """

    first: int
    last: int
    since_us: int
    until_us: int | None
    space: str


@dataclass(frozen=True)
class Committed:
    """What the newest snapshot says about one stream.

    Attributes:
        holes: Open gaps, sealed ones left out.
        head_id: The highest id of the newest numbering; None if no row was ever seen.
        head_us: Its event time.
        space: The newest numbering.
        offset: The next offset of the stream's partition.
    """

    holes: tuple[Hole, ...] = ()
    head_id: int | None = None
    head_us: int = 0
    space: str = ""
    offset: int = 0


@dataclass(frozen=True)
class Page:
    """One question to the exchange.

    Attributes:
        stream: Whose ids.
        first: The first id to ask for.
        rows: How many.
        holes: What is wanted of the answer, cut to the page.
    """

    stream: Stream
    first: int
    rows: int
    holes: tuple[Hole, ...]

    @property
    def spans(self) -> list[Span]:
        """The wanted ids."""
        return [(hole.first, hole.last) for hole in self.holes]


@dataclass(frozen=True)
class GiveUp:
    """Ids of a numbering to seal, and why."""

    stream: Stream
    space: str
    first: int
    last: int
    reason: str


@dataclass(frozen=True)
class Answer:
    """What the exchange answered to a page.

    Attributes:
        starts, ids, times_us: Of its rows: each covers (start, id].
        void: Ids that it says are no trades.
        dead: Ids of rows that cannot be stored.
    """

    starts: Int64s
    ids: Int64s
    times_us: Int64s
    void: Sequence[int] = ()
    dead: Sequence[int] = ()


@dataclass(frozen=True)
class Newest:
    """The newest id of a stream, as the exchange named it at a time."""

    id: int
    asked_us: int
    asked_s: float
