"""The exchange's clock steps, in a random market log: ids go on while event times jump, to and fro.

`step_clocks` moves the event times of a log from `market_log`; `hidden_steps` says where nobody could tell a step from
restarted ids. Within an instrument no numbering gets times that another one has: see `docs/architecture.md`, "Clocks".
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from k2ray.ledger import LedgerParams
from tests.support.market_log import POISON, SECOND, Row, market_log

HOUR = 3600 * SECOND
NEAR = 4
LONGEST_STEP = 3 * HOUR
Key = tuple[str, str]
Event = tuple[int, int]
"""(epoch, id)."""


def stepped_log(seed: int, table: str = "trades") -> tuple[list[Row], LedgerParams, int]:
    """Return a random log whose exchange's clock steps, the parameters for it, and how often clocks went back."""
    rows, params = market_log(seed, table)
    stepped, back = step_clocks(rows, random.Random(f"clock {seed}"), params)
    return stepped, params, back


def step_clocks(rows: Sequence[Row], rng: random.Random, params: LedgerParams) -> tuple[list[Row], int]:
    """Move each instrument's event times by steps of its exchange's clock; return how many of them went back, too."""
    times: dict[Key, dict[Event, int]] = defaultdict(dict)
    for row in rows:
        if row.epoch != POISON:
            known = times[(row.symbol, row.base)]
            event = (row.epoch, row.row_id)
            known[event] = min(known.get(event, row.time_us), row.time_us)
    moved: dict[Key, dict[Event, int]] = {}
    back = 0
    for key, known in sorted(times.items()):
        moved[key], steps = _offsets(known, rng, params.tolerance_us)
        back += steps
    found = []
    for row in rows:
        key = (row.symbol, row.base)
        if row.epoch != POISON:
            offset = moved[key][(row.epoch, row.row_id)]
        else:
            nearest = min(times[key], key=lambda event: abs(times[key][event] - row.time_us))
            offset = moved[key][nearest]
        found.append(replace(row, time_us=row.time_us + offset))
    return found, back


def _offsets(times: dict[Event, int], rng: random.Random, tolerance_us: int) -> tuple[dict[Event, int], int]:
    """Return by how much each event's time is off, and how often that falls."""
    events = sorted(times)
    for _ in range(30):
        steps = [(0, 0)]
        for place in sorted(rng.sample(range(1, len(events)), min(rng.choice((1, 1, 2, 3)), len(events) - 1))):
            epoch = events[place][0]
            inside = [times[event] for event in events if event[0] == epoch]
            size = rng.choice(
                (HOUR, 2 * HOUR, rng.uniform(1.5, 30) * tolerance_us, rng.uniform(0.02, 0.6) * (inside[-1] - inside[0]))
            )
            size = max(size, 1.5 * tolerance_us)
            # Ahead by less than a spool may add to, for holes between quotes are joined after a day of event time.
            step = rng.choice((-size, -size, min(size, 3 * HOUR)))
            steps.append((place, steps[-1][1] + round(step)))
        offsets = {event: steps[bisect_right(steps, (place, 1 << 62)) - 1][1] for place, event in enumerate(events)}
        if _apart(times, offsets, tolerance_us):
            return offsets, sum(later[1] < earlier[1] for earlier, later in pairwise(steps))
    return dict.fromkeys(events, 0), 0


def _apart(times: dict[Event, int], offsets: dict[Event, int], tolerance_us: int) -> bool:
    """Tell whether each numbering's times end before the next one's begin."""
    spans: dict[int, tuple[int, int]] = {}
    for event, time_us in times.items():
        shown = time_us + offsets[event]
        low, high = spans.get(event[0], (shown, shown))
        spans[event[0]] = (min(low, shown), max(high, shown))
    epochs = sorted(spans)
    return all(spans[earlier][1] + tolerance_us // 4 <= spans[later][0] for earlier, later in pairwise(epochs))


@dataclass
class _Seen:
    """The rows of one numbering that have come, all of them."""

    ids: list[int] = field(default_factory=list)
    time_us: dict[int, int] = field(default_factory=dict)
    newest_us: int = 0

    def add(self, row: Row) -> None:
        insort(self.ids, row.row_id)
        self.time_us[row.row_id] = row.time_us
        self.newest_us = max(self.newest_us, row.time_us)


def hidden_steps(rows: Sequence[Row], params: LedgerParams) -> set[Key]:
    """Return instruments with a step that looks like restarted ids: labels are not judged there.

    A row whose time does not lie between its neighbours' is told apart by its time if the numbering has had that time
    already, or by its id if that comes right after one that is known; or it lies where the clock is known to have gone
    back. And only in a numbering that has rows enough and is the newest.
    """
    seen: dict[Key, dict[int, _Seen]] = defaultdict(dict)
    hidden = set()
    for row in rows:
        if row.epoch == POISON:
            continue
        key = (row.symbol, row.base)
        numbering = seen[key].setdefault(row.epoch, _Seen())
        if row.row_id in numbering.time_us:
            continue
        newest = row.epoch == max(seen[key])
        oldest = all(other.newest_us < row.time_us for epoch, other in seen[key].items() if epoch != row.epoch)
        if not _told(row, numbering, params, newest=newest, oldest=oldest):
            hidden.add(key)
        numbering.add(row)
    return hidden


def _told(row: Row, seen: _Seen, params: LedgerParams, *, newest: bool, oldest: bool) -> bool:
    tolerance, at = params.tolerance_us, bisect_left(seen.ids, row.row_id)
    lower = seen.ids[at - 1] if at else None
    upper = seen.ids[at] if at < len(seen.ids) else None
    lower_us = seen.time_us[lower] if lower is not None else -(1 << 62)
    upper_us = seen.time_us[upper] if upper is not None else 1 << 62
    if lower_us - tolerance <= row.time_us <= upper_us + tolerance:
        return True
    if lower is None or not newest or len(seen.ids) < params.established_rows:
        return False
    first_us = seen.time_us[seen.ids[0]]
    last_us = seen.time_us[seen.ids[-1]]
    clock_us = last_us if seen.newest_us - last_us > params.step_us else seen.newest_us
    if first_us + tolerance <= row.time_us <= clock_us - tolerance:
        return True
    near = row.start - lower < NEAR - 1
    goes_back = lower_us > upper_us + tolerance
    if row.time_us < first_us + tolerance:
        early = row.time_us >= lower_us - LONGEST_STEP and row.time_us <= upper_us + tolerance
        return near and oldest and early
    return goes_back and row.time_us <= upper_us + LONGEST_STEP
