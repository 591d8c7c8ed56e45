"""What is complete, what is missing and what cannot be proven, of one numbering and one range. Pure.

A range is complete when every id from its first to its last was stored, and when it is known that no trade of the range
lies beyond: something newer than the range's end was stored, or the exchange was asked after it and named no newer id.
Ids that skip (quotes) prove nothing, and that is what is said of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from k2ray.backfill.spans import Span, count, intersect, subtract
from k2ray.ledger import Gap

MissingState = Literal["open", "filling", "lost", "unrecorded"]


@dataclass(frozen=True)
class Numbering:
    """What the ledger holds of one numbering of an instrument.

    Attributes:
        exchange, symbol: The instrument.
        space: The numbering's name.
        newest: Whether the instrument's newest row is in it: only then may more come above it.
        first_id, first_us: The lowest row's, as far as the ledger reaches.
        last_id, last_us: The highest row's.
        gaps: What is missing in between, by id.
        given_up: Ids that the ledger had to forget about.
    """

    exchange: str
    symbol: str
    space: str
    newest: bool
    first_id: int
    first_us: int
    last_id: int
    last_us: int
    gaps: tuple[Gap, ...]
    given_up: int = 0


@dataclass(frozen=True)
class Asked:
    """The range: of ids (inclusive), of time (start inclusive, end exclusive), or neither. None: no bound.

    Attributes:
        edges: For a range of time, the lowest and highest stored id in it; None if there is none.
    """

    first_id: int | None = None
    last_id: int | None = None
    start_us: int | None = None
    end_us: int | None = None
    edges: Span | None = None

    @property
    def by_time(self) -> bool:
        """Whether it is a range of time."""
        return self.start_us is not None or self.end_us is not None


@dataclass(frozen=True)
class Known:
    """What the backfill knows beyond the ledger.

    Attributes:
        newest_id, asked_us: The newest id that the exchange named, and when it was asked; None if it was not.
        filling: Ids that are being fetched, or are not committed yet.
    """

    newest_id: int | None = None
    asked_us: int | None = None
    filling: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Missing:
    """Ids that are missing in the range.

    Attributes:
        first_id, last_id: Both inclusive.
        state: `open`: not fetched yet; `filling`: on its way; `lost`: the exchange does not have them any more;
            `unrecorded`: below the first row that was ever recorded.
        since_us, until_us: Event times of the rows around them; None at the range's ends.
    """

    first_id: int
    last_id: int
    state: MissingState
    since_us: int | None
    until_us: int | None


@dataclass(frozen=True)
class Verdict:
    """What is known of a range.

    Attributes:
        numbering: Of what.
        first_id, last_id: Lowest and highest stored id in the range; None if none is stored.
        missing: By id.
        proven_id, proven_us: Every id from `first_id` to this one is stored, and up to when that says something.
        complete: None where ids prove nothing.
        reasons: Why it is not complete, or not proven.
    """

    numbering: Numbering
    first_id: int | None
    last_id: int | None
    missing: tuple[Missing, ...]
    proven_id: int | None
    proven_us: int | None
    complete: bool | None
    reasons: tuple[str, ...]


def unproven(numbering: Numbering, asked: Asked) -> Verdict:
    """Return the verdict of a numbering whose ids skip."""
    first, last = _bounds(numbering, asked)
    reason = "these ids skip: a missing one proves nothing"
    return Verdict(numbering, first, last, (), None, None, None, (reason,))


def assess(numbering: Numbering, asked: Asked, known: Known, tolerance_us: int) -> Verdict:
    """Return what is known of a range of a numbering whose ids step by one.

    Args:
        numbering: What the ledger holds.
        asked: The range.
        known: What the backfill knows; of no use but for the newest numbering.
        tolerance_us: How far event times of neighbours may be out of order.
    """
    known = known if numbering.newest else Known()
    first, last = _bounds(numbering, asked)
    missing = _inside(numbering, asked, known)
    reasons: list[str] = []
    if asked.first_id is not None and asked.first_id < numbering.first_id:
        end = numbering.first_id - 1 if asked.last_id is None else min(numbering.first_id - 1, asked.last_id)
        missing.insert(0, Missing(asked.first_id, end, "unrecorded", None, numbering.first_us))
    missing += _above(numbering, asked, known)
    for state, words in _WORDS.items():
        ids = sum(piece.last_id - piece.first_id + 1 for piece in missing if piece.state == state)
        if ids:
            reasons.append(f"{ids} ids {words}")
    if asked.start_us is not None and asked.start_us < numbering.first_us:
        reasons.append("nothing was recorded before the first row: what came before it is not known")
    if numbering.given_up:
        reasons.append(f"{numbering.given_up} ids were given up when there were too many gaps")
    proven_id, proven_us = _proven(numbering, missing, first, last, known)
    reasons += _open_end(numbering, asked, known, tolerance_us)
    return Verdict(numbering, first, last, tuple(missing), proven_id, proven_us, not reasons, tuple(reasons))


_WORDS: dict[MissingState, str] = {
    "open": "are missing and not fetched yet",
    "filling": "are being fetched or committed",
    "lost": "are lost: the exchange does not have them any more",
    "unrecorded": "lie below the first row that was recorded",
}


def _bounds(numbering: Numbering, asked: Asked) -> tuple[int | None, int | None]:
    if asked.by_time:
        return asked.edges if asked.edges is not None else (None, None)
    low = numbering.first_id if asked.first_id is None else max(numbering.first_id, asked.first_id)
    high = numbering.last_id if asked.last_id is None else min(numbering.last_id, asked.last_id)
    stored = subtract([(low, high)] if low <= high else [], [(gap.first_id, gap.last_id) for gap in numbering.gaps])
    return (stored[0][0], stored[-1][1]) if stored else (None, None)


def _inside(numbering: Numbering, asked: Asked, known: Known) -> list[Missing]:
    found: list[Missing] = []
    for gap in numbering.gaps:
        begin_us, end_us = sorted((gap.since_us, gap.until_us))  # the exchange's clock may have gone back in it
        if (asked.end_us is not None and begin_us >= asked.end_us) or (
            asked.start_us is not None and end_us < asked.start_us
        ):
            continue
        low = gap.first_id if asked.first_id is None else max(gap.first_id, asked.first_id)
        high = gap.last_id if asked.last_id is None else min(gap.last_id, asked.last_id)
        if low <= high:
            found += _pieces((low, high), "lost" if gap.sealed else "open", known, gap.since_us, gap.until_us)
    return sorted(found, key=lambda piece: piece.first_id)


def _above(numbering: Numbering, asked: Asked, known: Known) -> list[Missing]:
    """Return ids above the highest row that the exchange has."""
    if known.newest_id is None or (asked.end_us is not None and numbering.last_us >= asked.end_us):
        return []
    high = known.newest_id if asked.last_id is None else min(known.newest_id, asked.last_id)
    low = numbering.last_id + 1 if asked.first_id is None else max(numbering.last_id + 1, asked.first_id)
    return _pieces((low, high), "open", known, numbering.last_us, None) if low <= high else []


def _pieces(span: Span, state: MissingState, known: Known, since_us: int | None, until_us: int | None) -> list[Missing]:
    filling = intersect([span], known.filling) if state == "open" else []
    rest = subtract([span], filling)
    pieces = [Missing(*part, "filling", since_us, until_us) for part in filling]
    return sorted(
        [*pieces, *(Missing(*part, state, since_us, until_us) for part in rest)], key=lambda one: one.first_id
    )


def _proven(
    numbering: Numbering, missing: Sequence[Missing], first: int | None, last: int | None, known: Known
) -> tuple[int | None, int | None]:
    if first is None or last is None:
        return None, None
    hole = next((piece for piece in missing if piece.first_id > first), None)
    if hole is not None and hole.first_id <= last:
        return hole.first_id - 1, hole.since_us
    if last < numbering.last_id:
        return last, None
    is_newest = known.newest_id is not None and known.newest_id <= numbering.last_id
    asked_us = known.asked_us if is_newest and known.asked_us is not None else numbering.last_us
    return last, max(asked_us, numbering.last_us)


def _open_end(numbering: Numbering, asked: Asked, known: Known, tolerance_us: int) -> list[str]:
    """Say what the end of the range lacks to be proven."""
    if not numbering.newest:
        return []
    if asked.last_id is not None and asked.last_id > max(numbering.last_id, known.newest_id or 0):
        return ["ids above the newest one are not known yet"]
    if asked.end_us is None or numbering.last_us >= asked.end_us + tolerance_us:
        return []
    if known.newest_id is None or known.asked_us is None or known.asked_us < asked.end_us:
        return ["not proven up to the end: nothing newer was stored, and the exchange was not asked since"]
    return []


def ids_missing(missing: Sequence[Missing]) -> int:
    """Return how many ids are missing."""
    return count([(piece.first_id, piece.last_id) for piece in missing])
