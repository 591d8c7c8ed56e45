"""What the planner remembers of one stream, in memory only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from k2ray.backfill.model import Committed, Newest, Page
from k2ray.backfill.spans import Span


@dataclass
class Hold:
    """Ids not to ask for: until an offset is committed or a time has come, whichever is first."""

    spans: list[Span]
    until_s: float
    offset: int | None = None
    page: Page | None = None


@dataclass
class Absence:
    """Ids of a numbering that did not come, and how often in a row."""

    space: str
    span: Span
    times: int
    fetched: bool


@dataclass
class Known:
    """Everything that is known of a stream.

    Attributes:
        committed: As of the newest snapshot.
        seen: Gap -> when it was first seen.
        holds: Ids not to ask for.
        absences: Ids that did not come.
        named: The newest id as the exchange named it last, whatever it means.
        latest: The same, if it may be stored and is in the newest numbering.
        pending: The oldest of those that is not stored yet.
        proven: The newest of those that is.
        baseline: Without any row: the id above which ids may be missing.
    """

    committed: Committed = field(default_factory=Committed)
    seen: dict[Span, float] = field(default_factory=dict)
    holds: list[Hold] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    named: Newest | None = None
    pending: Newest | None = None
    latest: Newest | None = None
    proven: Newest | None = None
    baseline: int | None = None

    @property
    def reached(self) -> int | None:
        """The id above which ids may be missing: of the highest row, or without any where we began to ask."""
        return self.baseline if self.committed.head_id is None else self.committed.head_id

    def begin_anew(self) -> None:
        """Forget the newest ids: they were of another numbering."""
        self.named = self.latest = self.pending = self.proven = None


def ages(spans: Sequence[Span], before: Mapping[Span, float], now_s: float) -> dict[Span, float]:
    """Return when each span was first seen missing: what is left of an older one keeps its age."""
    older = sorted(before)
    found: dict[Span, float] = {}
    at = 0
    for first, last in sorted(spans):
        while at < len(older) and older[at][1] < first:
            at += 1
        place, seen = at, before.get((first, last), now_s)
        while place < len(older) and older[place][0] <= last:
            seen = min(seen, before[older[place]])
            place += 1
        found[first, last] = seen
    return found
