"""Which numbering a row's id belongs to, when an exchange may restart its ids.

A space holds a row if the row's event time fits between the times of its id's neighbours there, within a tolerance, and
the id is not absurdly far from them. Of the spaces that hold it the nearest id wins. Where none does, a new one opens:
`#2`, `agg#3`. The space is chosen first, coverage is judged second: simpler rules ("covered in any space", "newer than
the newest") lose or double rows.

An exchange's clock may step back while its ids go on. A row that fits nowhere, and at an id that a living numbering has
not covered, belongs there all the same if its time is one that this numbering has had already: later numberings only
have later times, earlier ones had earlier times (`Space.across_step`). A restart's time is new: it still opens a space.

A restarted space has a time floor (the end of the one before it), and once it is believed (`established_rows`) it gives
that one a ceiling: a single poisoned low id never ends a living numbering. A poisoned high id opens a space of its own.
When openings run over their rate, rows that fit nowhere are strays, space `#0`: kept, recognised if they come again.

Files without ids (`file:<digest>`) number their rows themselves: one space, time says nothing there.
Next in the flow: `runs.py` judges many rows of one instrument at once, by the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass

from k2ray.ledger.intervals import STEPS_BACK_KEPT, Intervals
from k2ray.ledger.params import CLOCK_STEP_US, HOUR_US, SECOND_US, LedgerParams

FOREVER = 1 << 62
CONTINUES = 4
"""A row so near to a space's ids continues it, though a restart that is not yet believed seems to have ended it."""

STRAY = 0
STRAY_TIMES_KEPT = 8
FILE_PREFIX = "file:"


@dataclass(frozen=True)
class LedgerEvent:
    """Something that an operator should know.

    Attributes:
        kind: `space_opened`, `stray` (the 1st, 2nd, 4th, 8th ... of an instrument) or `hole_given_up`.
        exchange: The instrument's exchange.
        symbol: The instrument's symbol.
        sequence_space: The space concerned.
        row_id: The id of the row that caused it.
        time_us: That row's event time.
        detail: More, for people.
    """

    kind: str
    exchange: str
    symbol: str
    sequence_space: str
    row_id: int
    time_us: int
    detail: str


def space_name(base: str, number: int) -> str:
    """Return a space's name: the base itself for the first numbering, then `#2`, `agg#3`; `#0` for strays."""
    return base if number == 1 else f"{base}#{number}"


class Space:
    """One numbering of an instrument.

    Attributes:
        number: 1 for the exchange's own first numbering, 2 and so on after restarts.
        intervals: What is covered.
        floor_us: No row of it is older (but for the tolerance).
        ceiling_us: No row of it is newer (but for the tolerance).
        opened_us: Event time of the row that opened it.
        opened_id: That row's id.
        newest_us: The newest event time of its rows.
        rows: How many rows it took.
        given_up: Ids of holes that were given up because there were too many.
        sealed: Sorted, disjoint ranges (from, to] that are lost for good; only their parts inside holes mean anything.
    """

    __slots__ = (
        "ceiling_us",
        "floor_us",
        "given_up",
        "intervals",
        "newest_us",
        "number",
        "opened_id",
        "opened_us",
        "rows",
        "sealed",
    )

    def __init__(self, number: int, opened_id: int, opened_us: int) -> None:
        self.number = number
        self.intervals = Intervals()
        self.floor_us = -FOREVER
        self.ceiling_us = FOREVER
        self.opened_us = opened_us
        self.opened_id = opened_id
        self.newest_us = -FOREVER
        self.rows = 0
        self.given_up = 0
        self.sealed: list[tuple[int, int]] = []

    def copy(self) -> Space:
        """Return a copy that shares nothing mutable."""
        other = Space(self.number, self.opened_id, self.opened_us)
        other.intervals = self.intervals.copy()
        other.floor_us, other.ceiling_us = self.floor_us, self.ceiling_us
        other.newest_us, other.rows, other.given_up = self.newest_us, self.rows, self.given_up
        other.sealed = self.sealed[:]
        return other

    def distance(self, start: int, row_id: int, time_us: int, params: LedgerParams) -> int | None:
        """Return how far a row is from what is covered (0: it is covered), or None if its time or id does not fit."""
        tolerance = params.tolerance_us
        if not self.floor_us - tolerance <= time_us <= self.ceiling_us + tolerance:
            return None
        lower, upper = self.intervals.neighbours(row_id)
        if (lower and time_us < lower[1] - tolerance) or (upper and time_us > upper[1] + tolerance):
            return None
        distance = self.intervals.distance(start, row_id)
        if distance > 1:
            if lower and absurd(row_id - lower[0], time_us - lower[1], params):
                return None
            if upper and absurd(upper[0] - row_id, upper[1] - time_us, params):
                return None
        return distance

    def across_step(self, start: int, row_id: int, time_us: int, params: LedgerParams) -> int | None:
        """Return how far a row that fits no space is from this one's ids, if the exchange's clock went back; else None.

        Only a living numbering, at an id that is not covered, above its lowest. Where its own times do not tell (the
        clock went back to before its first row, or the row lies in a hole where it is known to have gone back), the id
        must come right after a known one, or the step be short.
        """
        intervals, tolerance = self.intervals, params.tolerance_us
        if self.rows < params.established_rows or self.ceiling_us < FOREVER:
            return None
        lower, upper = intervals.neighbours(row_id)
        distance = intervals.distance(start, row_id)
        if lower is None or not 0 < distance <= params.slack_ids:
            return None
        before = lower[1] - time_us > tolerance
        after = upper is not None and time_us - upper[1] > tolerance
        between = upper is not None and lower[1] - upper[1] > tolerance
        if time_us < intervals.first_us[0] + tolerance:
            earliest_us = max(lower[1] - CLOCK_STEP_US, self.floor_us - tolerance)
            fits = distance <= CONTINUES and before and not after and time_us >= earliest_us
        elif time_us > self.clock_us(params) - tolerance:
            fits = between and upper is not None and time_us <= upper[1] + CLOCK_STEP_US
        else:
            fits = before or after
        if not fits:
            return None
        steps = before + after - between
        if steps > 0 and intervals.steps_back(tolerance) + steps > STEPS_BACK_KEPT:
            return None
        return distance

    def clock_us(self, params: LedgerParams) -> int:
        """Return where the exchange's clock stood at the highest id: before the newest time, if it went back since."""
        last_us = self.intervals.last_us[-1]
        return last_us if self.newest_us - last_us > params.step_us else self.newest_us

    def began_us(self, params: LedgerParams) -> int:
        """Return the lowest id's event time, or the oldest one, if the exchange's clock went back to before that."""
        first_us, oldest_us = self.intervals.first_us[0], self.intervals.oldest_us()
        return oldest_us if first_us - oldest_us > params.tolerance_us else first_us

    def settle(self, params: LedgerParams) -> None:
        """Join holes that prove nothing and are older than the longest spool."""
        intervals = self.intervals
        while (
            not params.proves_gaps
            and len(intervals) > 1
            and intervals.first_us[1] + params.hole_age_us < self.newest_us
        ):
            intervals.join_lowest(params.tolerance_us)


def absurd(ids: int, after_us: int, params: LedgerParams) -> bool:
    """Tell whether ids that far apart cannot be so little time apart."""
    return (ids - params.slack_ids) * SECOND_US > params.ids_per_s * max(0, after_us)


class Instrument:
    """The spaces of one (exchange, symbol, base space), and the rows that have none.

    Attributes:
        spaces: In the order of their opening.
        strays: id -> event times of rows that fit nowhere while no space could be opened; the newest `strays_kept` ids,
            and of each the newest `STRAY_TIMES_KEPT` (restarted numberings share ids).
        stray_rows: How many there have been.
        recent: trade_id or quote_id of rows without a sequence; the newest `recent_kept`.
        hot: The space that took the newest row: where the next one is looked for first. Changes no decision.
    """

    __slots__ = (
        "base",
        "exchange",
        "hot",
        "partition",
        "recent",
        "recent_rows",
        "spaces",
        "stray_rows",
        "strays",
        "symbol",
        "timeless",
    )

    def __init__(self, exchange: str, symbol: str, base: str, partition: tuple[str, int]) -> None:
        self.exchange = exchange
        self.symbol = symbol
        self.base = base
        self.partition = partition
        self.timeless = base.startswith(FILE_PREFIX)
        self.spaces: list[Space] = []
        self.strays: dict[int, tuple[int, ...]] = {}
        self.stray_rows = 0
        self.recent: dict[str, None] = {}
        self.recent_rows = 0
        self.hot = 0

    def copy(self) -> Instrument:
        """Return a copy that shares nothing mutable."""
        other = Instrument(self.exchange, self.symbol, self.base, self.partition)
        other.spaces = [space.copy() for space in self.spaces]
        other.strays, other.stray_rows = dict(self.strays), self.stray_rows
        other.recent, other.recent_rows = dict(self.recent), self.recent_rows
        other.hot = self.hot
        return other

    def back_us(self, params: LedgerParams) -> int:
        """Return how far times go back from a row to the next where the clock went back."""
        return FOREVER if self.timeless else params.tolerance_us

    def judge(
        self, start: int, row_id: int, time_us: int, params: LedgerParams, events: list[LedgerEvent]
    ) -> tuple[bool, int]:
        """Decide one row that covers (start, row_id]: whether it is new, and the number of its space."""
        for space in self.spaces:
            space.settle(params)
        if any(abs(known_us - time_us) <= params.tolerance_us for known_us in self.strays.get(row_id, ())):
            return False, STRAY
        index, distance = self._choose(start, row_id, time_us, params)
        if index < 0:
            if not self._may_open(time_us, params):
                return True, self._stray(row_id, time_us, params, events)
            index, start = self._open(row_id, time_us, params, events), row_id - 1
        elif distance == 0:
            return False, self.spaces[index].number
        self._place(index, start, row_id, time_us, params, events)
        return True, self.spaces[index].number

    def judge_by_name(self, name: str, params: LedgerParams) -> bool:
        """Decide a row without a sequence: it is new unless its id is among the newest `recent_kept`."""
        if name in self.recent:
            return False
        if len(self.recent) >= params.recent_kept:
            del self.recent[next(iter(self.recent))]
        self.recent[name] = None
        self.recent_rows += 1
        return True

    def _choose(self, start: int, row_id: int, time_us: int, params: LedgerParams) -> tuple[int, int]:
        """Return the index of the space that holds the row and its distance there; (-1, 0) if none does."""
        if self.timeless:
            return (0, self.spaces[0].intervals.distance(start, row_id)) if self.spaces else (-1, 0)
        best, nearest = -1, 0
        for index, space in enumerate(self.spaces):
            distance = space.distance(start, row_id, time_us, params)
            if distance is not None and distance > CONTINUES and self._superseded(space, time_us, params):
                continue
            if distance is not None and (best < 0 or distance <= nearest):
                best, nearest = index, distance
        if best < 0 or (nearest > CONTINUES and self.spaces[best].rows < params.established_rows):
            furthest = params.slack_ids if best < 0 else CONTINUES
            for index, space in enumerate(self.spaces):
                distance = space.across_step(start, row_id, time_us, params)
                if distance is not None and distance <= furthest:
                    best, nearest = index, distance
                    furthest = distance
        return best, nearest

    def _superseded(self, space: Space, time_us: int, params: LedgerParams) -> bool:
        """Tell whether a later space, not yet believed, seems to have ended this one before `time_us`."""
        return any(
            other.rows < params.established_rows
            and space.clock_us(params) <= other.opened_us + params.tolerance_us < time_us
            and other.opened_id <= space.intervals.hi[-1]
            for other in self.spaces
            if other is not space
        )

    def _may_open(self, time_us: int, params: LedgerParams) -> bool:
        if len(self.spaces) >= params.spaces_kept:
            return False
        near = sum(1 for space in self.spaces[1:] if abs(space.opened_us - time_us) < HOUR_US)
        return near < params.openings_per_hour

    def _open(self, row_id: int, time_us: int, params: LedgerParams, events: list[LedgerEvent]) -> int:
        space = Space(len(self.spaces) + 1, row_id, time_us)
        for other in self.spaces:
            if other.rows == 1:  # perhaps a poisoned row, which bounds nothing
                continue
            ended_us = other.clock_us(params)
            if time_us >= ended_us - params.tolerance_us:
                space.floor_us = max(space.floor_us, min(ended_us, time_us))
            elif time_us < other.began_us(params):
                space.ceiling_us = min(space.ceiling_us, other.began_us(params))
        self.spaces.append(space)
        if len(self.spaces) > 1:
            name = space_name(self.base, space.number)
            detail = "no known numbering holds this id at this time"
            events.append(LedgerEvent("space_opened", self.exchange, self.symbol, name, row_id, time_us, detail))
        return len(self.spaces) - 1

    def _place(
        self, index: int, start: int, row_id: int, time_us: int, params: LedgerParams, events: list[LedgerEvent]
    ) -> None:
        space = self.spaces[index]
        back_us = self.back_us(params)
        space.intervals.add(start, row_id, time_us, FOREVER if self.timeless else params.step_us, back_us)
        space.newest_us = max(space.newest_us, time_us)
        space.rows += 1
        self.hot = index
        if space.rows == params.established_rows:
            self._establish(space, params)
        if len(space.intervals) > params.intervals_kept:
            low, high = space.intervals.join_lowest(back_us)
            space.given_up += high - low
            name = space_name(self.base, space.number)
            detail = f"more than {params.intervals_kept} intervals: ids {low + 1} to {high} are given up"
            events.append(LedgerEvent("hole_given_up", self.exchange, self.symbol, name, row_id, time_us, detail))

    def _establish(self, space: Space, params: LedgerParams) -> None:
        """Bound the neighbours in time of a space that is now believed."""
        for other in self.spaces:
            if other is space or not other.intervals:
                continue
            if space.opened_us >= other.clock_us(params) - params.tolerance_us:
                if space.opened_id <= other.intervals.hi[-1]:  # ids that jumped ahead end nothing
                    other.ceiling_us = min(other.ceiling_us, max(space.opened_us, other.newest_us))
            elif space.opened_us < other.began_us(params):
                other.floor_us = max(other.floor_us, min(space.newest_us, other.began_us(params)))

    def _stray(self, row_id: int, time_us: int, params: LedgerParams, events: list[LedgerEvent]) -> int:
        times = self.strays.pop(row_id, ())[1 - STRAY_TIMES_KEPT :]
        if len(self.strays) >= params.strays_kept:
            del self.strays[next(iter(self.strays))]
        self.strays[row_id] = (*times, time_us)
        self.stray_rows += 1
        if self.stray_rows & (self.stray_rows - 1) == 0:
            name = space_name(self.base, STRAY)
            detail = f"{self.stray_rows} rows fit no numbering while openings are limited"
            events.append(LedgerEvent("stray", self.exchange, self.symbol, name, row_id, time_us, detail))
        return STRAY
