"""Judge many rows of one instrument: by runs where rows continue each other, row by row where they do not.

A run is rows of which each starts where the one before ended. Two things are decided for a whole run at once: it
repeats what one interval covers, or it continues an interval inside a `Box` of ids and times in which no other decision
is possible. Both give exactly what `Instrument.judge` gives row by row; whatever is not certain goes there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from k2ray.ledger.intervals import is_mark
from k2ray.ledger.params import SECOND_US, LedgerParams
from k2ray.ledger.spaces import FOREVER, Instrument, LedgerEvent, Space

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SHORTEST_BLOCK = 6
"""Below so many rows, judging them one by one is cheaper."""


@dataclass(frozen=True)
class Box:
    """Where the rows that continue an interval are certainly new in its space.

    Attributes:
        below_id: Their ids stay below this one.
        from_us: Their event times are not older than this,
        to_us: and not newer than this.
    """

    below_id: int
    from_us: int
    to_us: int


def continuing_box(instrument: Instrument, index: int, at: int, params: LedgerParams) -> Box | None:
    """Return the box of the interval `at` of the space `index`, or None where every row needs its own decision."""
    space = instrument.spaces[index]
    intervals = space.intervals
    tolerance = params.tolerance_us
    if instrument.timeless:
        return Box(intervals.lo[at + 1] if at + 1 < len(intervals) else FOREVER, -FOREVER, FOREVER)
    if len(instrument.spaces) > 1 and space.rows < params.established_rows:
        return None
    below_id, from_us, to_us = FOREVER, space.floor_us - tolerance, space.ceiling_us + tolerance
    if at + 1 < len(intervals):
        below_id = intervals.lo[at + 1]
        upper_id, upper_us = intervals.first_id[at + 1], intervals.first_us[at + 1]
        over = upper_id - intervals.hi[at] - params.slack_ids
        to_us = min(to_us, upper_us + tolerance)
        if over > 0:
            to_us = min(to_us, upper_us - over * SECOND_US // params.ids_per_s - 1)
    if not params.proves_gaps and len(intervals) > 1:
        to_us = min(to_us, intervals.first_us[1] + params.hole_age_us)  # past it the lowest hole is joined first
    if instrument.strays:
        from_us = max(from_us, max(max(times) for times in instrument.strays.values()) + tolerance + 1)
    end, end_us = intervals.hi[at], intervals.last_us[at]
    for other in instrument.spaces:
        if other is space:
            continue
        limits = _keep_out(other, end, end_us, tolerance)
        if limits is None:
            return None
        below_id, from_us, to_us = (
            min(below_id, limits.below_id),
            max(from_us, limits.from_us),
            min(to_us, limits.to_us),
        )
    return Box(below_id, from_us, to_us)


def _keep_out(other: Space, end: int, end_us: int, tolerance: int) -> Box | None:
    """Return where rows that continue the interval ending at `end` cannot belong to another space."""
    intervals = other.intervals
    at = intervals.find(end + 1)
    next_lo = intervals.lo[at + 1] if at + 1 < len(intervals) else FOREVER
    if (at < 0 or intervals.hi[at] < end) and next_lo > end + 1:
        return Box(next_lo, -FOREVER, FOREVER)  # all its ids are further away than the interval's own end
    if end_us > other.ceiling_us + tolerance:
        return Box(FOREVER, other.ceiling_us + tolerance + 1, FOREVER)
    if end_us < other.floor_us - tolerance:
        return Box(FOREVER, -FOREVER, other.floor_us - tolerance - 1)
    lower, upper = intervals.neighbours(end + 1)
    below_id = upper[0] if upper else FOREVER
    if upper and end_us > upper[1] + tolerance:
        return Box(below_id, upper[1] + tolerance + 1, FOREVER)
    if lower and end_us < lower[1] - tolerance:
        return Box(below_id, -FOREVER, lower[1] - tolerance - 1)
    if other.ceiling_us < FOREVER:  # just restarted: certain as soon as time has moved past the old space
        return Box(FOREVER, other.ceiling_us + tolerance + 1, FOREVER)
    return None


def judge_rows(
    instrument: Instrument,
    start: Int64s,
    row_id: Int64s,
    time_us: Int64s,
    params: LedgerParams,
    events: list[LedgerEvent],
) -> tuple[Bools, npt.NDArray[np.int32]]:
    """Decide an instrument's rows in their order.

    Args:
        instrument: Changed by the rows that are new.
        start: Each row covers (start, row_id].
        row_id: The rows' own ids.
        time_us: Their event times.
        params: The ledger's.
        events: Gets what operators should know.

    Returns:
        For each row whether it is new, and the number of its space.
    """
    rows = len(row_id)
    keep = np.zeros(rows, dtype=np.bool_)
    number = np.zeros(rows, dtype=np.int32)
    breaks = np.flatnonzero(start[1:] != row_id[:-1]) + 1
    at = 0
    for end in [*breaks.tolist(), rows]:
        patience = SHORTEST_BLOCK
        while at < end:
            if end - at >= SHORTEST_BLOCK:
                reached = _judge_block(instrument, start, row_id, time_us, at, end, params, keep, number)
                if reached > at:
                    at, patience = reached, SHORTEST_BLOCK
                    continue
                stop = min(end, at + patience)
                patience *= 2
            else:
                stop = end
            for row in range(at, stop):
                keep[row], number[row] = instrument.judge(
                    int(start[row]), int(row_id[row]), int(time_us[row]), params, events
                )
            at = stop
    return keep, number


def _judge_block(
    instrument: Instrument,
    start: Int64s,
    row_id: Int64s,
    time_us: Int64s,
    at: int,
    end: int,
    params: LedgerParams,
    keep: Bools,
    number: npt.NDArray[np.int32],
) -> int:
    """Decide as many rows from `at` on as are certain; return where it stopped."""
    first, first_start = int(row_id[at]), int(start[at])
    for index, space in enumerate(instrument.spaces):
        space.settle(params)
        intervals = space.intervals
        found = intervals.find(first)
        if found < 0:
            continue
        if first <= intervals.hi[found]:
            if first < intervals.first_id[found] or instrument.strays:
                continue
            reached = _repeated(instrument, space, found, row_id, time_us, at, end, params)
            number[at:reached] = space.number
        elif first_start == intervals.hi[found]:
            reached = _continued(instrument, index, found, start, row_id, time_us, at, end, params)
            keep[at:reached] = True
            number[at:reached] = space.number
        else:
            continue
        if reached > at:
            return reached
    return at


def _repeated(
    instrument: Instrument,
    space: Space,
    found: int,
    row_id: Int64s,
    time_us: Int64s,
    at: int,
    end: int,
    params: LedgerParams,
) -> int:
    """Return up to which row the run is covered by one interval and fits its times."""
    intervals = space.intervals
    end = at + int(np.searchsorted(row_id[at:end], intervals.hi[found], side="right"))
    if instrument.timeless:
        return end
    ids, times = row_id[at:end], time_us[at:end]
    points = [(intervals.first_id[found], intervals.first_us[found]), *intervals.marks[found]]
    points.append((intervals.hi[found], intervals.last_us[found]))
    known_ids = np.array([point[0] for point in points], dtype=np.int64)
    known_us = np.array([point[1] for point in points], dtype=np.int64)
    lower = known_us[np.searchsorted(known_ids, ids, side="right") - 1]
    upper = known_us[np.searchsorted(known_ids, ids, side="left")]
    tolerance = params.tolerance_us
    fits = (times >= np.maximum(lower, space.floor_us) - tolerance) & (
        times <= np.minimum(upper, space.ceiling_us) + tolerance
    )
    return end if fits.all() else at + int(np.argmin(fits))


def _continued(
    instrument: Instrument,
    index: int,
    found: int,
    start: Int64s,
    row_id: Int64s,
    time_us: Int64s,
    at: int,
    end: int,
    params: LedgerParams,
) -> int:
    """Let the run continue an interval as far as its box reaches; return up to which row it did."""
    box = continuing_box(instrument, index, found, params)
    if box is None:
        return at
    space = instrument.spaces[index]
    intervals = space.intervals
    end = at + int(np.searchsorted(row_id[at:end], box.below_id, side="left"))
    if end == at:
        return at
    times = time_us[at:end]
    if not instrument.timeless:
        before = np.empty_like(times)
        before[0] = intervals.last_us[found]
        before[1:] = times[:-1]
        fits = (times >= before - params.tolerance_us) & (times >= box.from_us) & (times <= box.to_us)
        fits &= np.abs(times - before) <= params.step_us
        if not fits.all():
            end = at + int(np.argmin(fits))
            if end == at:
                return at
    take(instrument, index, found, start[at:end], row_id[at:end], time_us[at:end], params)
    return end


def take(
    instrument: Instrument,
    index: int,
    found: int,
    start: Int64s,
    row_id: Int64s,
    time_us: Int64s,
    params: LedgerParams,
) -> None:
    """Let rows that were found certain continue the interval `found` of the space `index`."""
    space = instrument.spaces[index]
    space.intervals.extend(found, int(row_id[-1]), int(time_us[-1]))
    shift = space.intervals.shift[found]
    if is_mark(int(start[0]), int(row_id[-1]), shift):
        back_us = instrument.back_us(params)
        for row in np.flatnonzero((start ^ row_id) >> shift).tolist():
            space.intervals.mark(found, int(start[row]), int(row_id[row]), int(time_us[row]), back_us)
    space.newest_us = max(space.newest_us, int(time_us.max()))
    space.rows += len(row_id)
    instrument.hot = index
