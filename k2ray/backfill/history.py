"""What became of gaps: the difference between two looks at the ledger, as events. Pure.

An event says of some ids that they were found missing (`open`), that they came after all (`filled`) or that nobody
waits for them any more (`lost`). Ids are missing once and filled at most once, so (instrument, state, ids) is an
event's identity, and who applies the same look twice gets no second event. A gap that opens and closes between two
looks leaves no event; the ledger judged it all the same.

Next in the flow: `gaps_table.py` stores events and the state they follow from in one commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from k2ray.backfill.spans import Span, intersect, subtract
from k2ray.ledger import Gap

GapState = Literal["open", "filled", "lost"]
SpaceKey = tuple[str, str, str, str]
"""(table, exchange, symbol, sequence_space)."""


@dataclass(frozen=True)
class MissingPiece:
    """Ids that are missing as of the last look.

    Attributes:
        first, last: The ids, both inclusive.
        opened_us: When they were first found missing.
        lost: Sealed: nobody waits for them.
    """

    first: int
    last: int
    opened_us: int
    lost: bool


@dataclass(frozen=True)
class GapEvent:
    """One row of the gaps table.

    Attributes:
        key: Whose ids.
        first, last: The ids, both inclusive.
        state: What became of them.
        opened_us: When they were first found missing.
        closed_us: When they were found filled or lost; None while open.
        reason: For people.
        snapshot_id: The snapshot that says so.
    """

    key: SpaceKey
    first: int
    last: int
    state: GapState
    opened_us: int
    closed_us: int | None
    reason: str
    snapshot_id: int

    @property
    def at_us(self) -> int:
        """When it was found."""
        return self.opened_us if self.closed_us is None else self.closed_us

    @property
    def event_id(self) -> str:
        """The same for the same event, whoever finds it."""
        return f"{'/'.join(self.key)}/{self.first}-{self.last}/{self.state}"


History = dict[SpaceKey, tuple[MissingPiece, ...]]
"""What is missing as of the last look."""


def missing_now(table: str, gaps: Iterable[Gap]) -> dict[SpaceKey, dict[bool, list[Span]]]:
    """Return a ledger's gaps by numbering: False -> open ids, True -> lost ones."""
    found: dict[SpaceKey, dict[bool, list[Span]]] = {}
    for gap in gaps:
        key = (table, gap.exchange, gap.symbol, gap.sequence_space)
        found.setdefault(key, {False: [], True: []})[gap.sealed].append((gap.first_id, gap.last_id))
    return found


def advance(
    before: History,
    table: str,
    exchange: str,
    gaps: Iterable[Gap],
    snapshot_id: int,
    now_us: int,
    why_lost: Callable[[SpaceKey, Span], str],
) -> tuple[History, list[GapEvent]]:
    """Return what is missing now, and what happened since `before`.

    Args:
        before: As of the last look; keys of other tables and exchanges stay as they are.
        table: Whose ledger.
        exchange: Whose gaps.
        gaps: Of that exchange in that ledger, sealed ones included.
        snapshot_id: The ledger's.
        now_us: Wall clock.
        why_lost: Returns the reason for sealed ids, where it is known.
    """
    now = missing_now(table, gaps)
    after: History = {key: pieces for key, pieces in before.items() if key[:2] != (table, exchange)}
    events: list[GapEvent] = []
    for key in sorted({*now, *(key for key in before if key[:2] == (table, exchange))}):
        pieces = before.get(key, ())
        missing = now.get(key, {False: [], True: []})
        kept = _advance_one(key, pieces, missing, snapshot_id, now_us, why_lost, events)
        if kept:
            after[key] = kept
    return after, events


def _advance_one(
    key: SpaceKey,
    before: tuple[MissingPiece, ...],
    missing: dict[bool, list[Span]],
    snapshot_id: int,
    now_us: int,
    why_lost: Callable[[SpaceKey, Span], str],
    events: list[GapEvent],
) -> tuple[MissingPiece, ...]:
    everything = [*missing[False], *missing[True]]
    fresh = subtract(everything, [(piece.first, piece.last) for piece in before])
    pieces = sorted([*before, *(MissingPiece(*span, now_us, False) for span in fresh)], key=lambda piece: piece.first)
    events += [GapEvent(key, first, last, "open", now_us, None, "", snapshot_id) for first, last in fresh]
    after = []
    for piece in pieces:
        whole = [(piece.first, piece.last)]
        for first, last in subtract(whole, everything):
            events.append(GapEvent(key, first, last, "filled", piece.opened_us, now_us, "", snapshot_id))
        for lost in (False, True):
            for span in intersect(missing[lost], whole):
                after.append(MissingPiece(*span, piece.opened_us, lost))
                if lost and not piece.lost:
                    reason = why_lost(key, span)
                    events.append(GapEvent(key, *span, "lost", piece.opened_us, now_us, reason, snapshot_id))
    return tuple(after)
