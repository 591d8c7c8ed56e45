"""Which ids to ask the exchange for, and which to give up: a pure planner. Time is an argument.

It is told what is committed (`observe`), the newest ids that the exchange names (`newest`), what came of each page
(`answered`, `produced`, `failed`), and says what to do next (`next`). Rules:

1. An id is wanted when the committed ledger has not seen it for `grace_s`: in a gap between rows, or above the newest
   row and up to the newest id that the exchange named that long ago (trades missed at the end of a session, or while a
   feed is down).
2. Wanted ids become pages of at most one answer's rows; neighbouring gaps that fit one page are one page. Symbols take
   turns, so that one long outage does not hold up the others.
3. An id is asked for by one page at a time, and after its rows are in the log not again until the committed offsets
   have passed them: what is decided by then says whether they helped. Nothing of this is kept on disk: after a crash
   ids are fetched again, and the ledger drops what it has.
4. Ids that the exchange does not answer (trades older than it keeps, numberings begun anew) are asked for again after
   a pause; absent `lost_after_answers` times in a row (ten times that if the answers are empty), they are sealed:
   lost. What the exchange itself marks as void,
   what cannot be stored, and gaps wider than `max_gap_ids` are sealed at once. Above the newest row nothing is sealed:
   only a gap can be lost.

Next in the flow: `session.py` carries it out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, takewhile

import numpy as np
import numpy.typing as npt

from k2ray.backfill.known import Absence, Hold, Known, ages
from k2ray.backfill.model import Answer, Committed, GiveUp, Hole, Newest, Page, Policy, Stream
from k2ray.backfill.spans import Int64s, Span, intersect, of_ids, of_ranges, subtract
from k2ray.ledger.params import CLOCK_STEP_US

EMPTY_ANSWERS = 10
"""So many times more answers it takes to give up ids when the answers hold nothing above them either."""

GONE = "the exchange does not have these trades any more"
BEGAN_ANEW = "the exchange has other trades under these ids"
VOID = "the exchange says that these ids are no trades"
DEAD = "the exchange's values cannot be stored: see the dead letters"
ELSEWHERE = "rows of these ids were fetched and belong to another numbering"


class Planner:
    """Plans the backfill of one exchange.

    Args:
        policy: When to act.
        page_rows: Channel -> rows that one answer holds at most.
    """

    def __init__(self, policy: Policy, page_rows: Mapping[str, int]) -> None:
        self._policy = policy
        self._page_rows = dict(page_rows)
        self._streams: dict[Stream, Known] = {}
        self._turn = 0

    # --- what happened

    def observe(self, committed: Mapping[Stream, Committed], now_s: float) -> None:
        """Take note of a newer snapshot."""
        for stream, view in committed.items():
            known = self._streams.setdefault(stream, Known())
            if known.committed.head_id is not None and view.space != known.committed.space:
                known.begin_anew()
            known.committed = view
            known.seen = ages([(hole.first, hole.last) for hole in view.holes], known.seen, now_s)
            self._forget_absences(known)
            self._release(stream, known, now_s)
            self._prove(known)

    def newest(self, stream: Stream, newest: Newest) -> None:
        """Take note of the newest id that the exchange names.

        One below what is committed already proves nothing: its numbering began anew, or its REST lags its streams.
        """
        known = self._streams.setdefault(stream, Known())
        known.named = newest
        if known.committed.head_id is not None and newest.id < known.committed.head_id:
            return
        if known.baseline is None:
            known.baseline = newest.id
        known.latest = newest
        known.pending = known.pending or newest
        self._prove(known)

    def answered(self, page: Page, answer: Answer, now_s: float) -> tuple[npt.NDArray[np.bool_], list[GiveUp]]:
        """Judge an answer.

        Returns:
            Which rows to produce, and what to seal. Call `produced` once both are in the log, also if there is nothing.
        """
        known = self._streams[page.stream]
        keep = np.zeros(len(answer.ids), dtype=np.bool_)
        void, dead = (of_ids(np.array(ids, dtype=np.int64)) for ids in (answer.void, answer.dead))
        newest = max([*answer.ids[-1:].tolist(), *answer.void, *answer.dead], default=0)
        covered: list[Span] = []
        seals: list[GiveUp] = []
        for hole in page.holes:
            whole = [(hole.first, hole.last)]
            inside = (answer.ids >= hole.first) & (answer.starts < hole.last)
            timely = inside & self._in_time(known.committed, hole, answer.times_us)
            keep |= timely
            came = of_ranges(answer.starts[timely], answer.ids[timely])
            covered += came
            others = subtract(of_ids(answer.ids[inside & ~timely]), came)
            self._absences_end(known, hole.space, came)
            seals += _seals(page.stream, hole, subtract(void, came), VOID)
            seals += _seals(page.stream, hole, subtract(dead, came), DEAD)
            others, gone = intersect(others, whole), subtract(whole, came + others + void + dead)
            seals += self._absent(known, page.stream, hole, others, hole.last + 1, BEGAN_ANEW)
            seals += self._absent(known, page.stream, hole, gone, newest, GONE)
        decided = [*covered, *((seal.first, seal.last) for seal in seals)]
        for hold in known.holds:
            if hold.page is page:
                hold.spans = intersect(page.spans, decided)
        left = subtract(page.spans, decided)
        if left:
            known.holds.append(Hold(left, now_s + self._policy.retry_s))
        return keep, seals

    def _in_time(self, committed: Committed, hole: Hole, times_us: Int64s) -> npt.NDArray[np.bool_]:
        """Tell which times rows of a gap may have, so that the ledger takes them for its numbering's."""
        tolerance = self._policy.tolerance_us
        if hole.until_us is None:  # above the newest row any time is possible: the ledger judges
            return np.ones(len(times_us), dtype=np.bool_)
        not_early, not_late = times_us >= hole.since_us - tolerance, times_us <= hole.until_us + tolerance
        if hole.since_us > hole.until_us + tolerance:  # the exchange's clock went back in the gap
            return (not_early | not_late) & (times_us <= hole.until_us + CLOCK_STEP_US)
        if hole.space == committed.space:  # perhaps it did: what the numbering has seen is not a restart's
            not_late |= times_us <= committed.head_us - tolerance
        return not_early & not_late

    def produced(self, page: Page, offset: int | None, now_s: float) -> None:
        """Wait with a page's ids until a snapshot has decided what is in the log now.

        Args:
            page: Whose rows and seals the log has confirmed.
            offset: The end of the stream's partition after that; None if nothing was produced.
            now_s: Monotonic clock.
        """
        known = self._streams[page.stream]
        mine = [span for hold in known.holds if hold.page is page for span in hold.spans]
        self.failed(page)
        if offset is not None and mine:
            known.holds.append(Hold(mine, now_s + self._policy.commit_timeout_s, offset))

    def sealed(self, seals: Sequence[GiveUp], offsets: Mapping[Stream, int], now_s: float) -> None:
        """Wait with sealed ids that no page asked for until a snapshot has them."""
        until_s = now_s + self._policy.commit_timeout_s
        for seal in seals:
            hold = Hold([(seal.first, seal.last)], until_s, offsets[seal.stream])
            self._streams[seal.stream].holds.append(hold)

    def failed(self, page: Page) -> None:
        """Let a page's ids be asked for again: there was no answer."""
        known = self._streams[page.stream]
        known.holds = [hold for hold in known.holds if hold.page is not page]

    # --- what to do

    def next(self, now_s: float, room: int) -> list[Page]:
        """Return the next pages, at most `room`; each is under way until `produced` or `failed`."""
        streams = sorted(self._streams)
        self._turn = (self._turn + 1) % max(1, len(streams))
        turns = [self._pages(stream, now_s) for stream in streams[self._turn :] + streams[: self._turn]]
        pages: list[Page] = []
        while turns and len(pages) < room:
            page = next(turns[0], None)
            if page is None:
                turns.pop(0)
                continue
            turns.append(turns.pop(0))
            pages.append(page)
        for page in pages:
            self._streams[page.stream].holds.append(Hold(page.spans, float("inf"), page=page))
        return pages

    def give_ups(self) -> list[GiveUp]:
        """Return what to seal without asking: absurd gaps, and ids whose rows came and did not help, again and again.

        Call `sealed` once they are in the log.
        """
        found = []
        for stream, known in self._streams.items():
            held = [span for hold in known.holds if hold.offset is not None for span in hold.spans]
            absent = [
                absence.span
                for absence in known.absences
                if absence.fetched and absence.times >= self._policy.lost_after_answers
            ]
            for hole in known.committed.holes:
                width = hole.last - hole.first + 1
                if width > self._policy.max_gap_ids:
                    reason = f"{width} ids are more than backfill.max_gap_ids ({self._policy.max_gap_ids})"
                    found += _seals(stream, hole, subtract([(hole.first, hole.last)], held), reason)
                elif absent:
                    found += _seals(stream, hole, subtract(absent, held), ELSEWHERE)
        return found

    @property
    def busy(self) -> bool:
        """Whether rows are in the log and not committed yet, or pages under way."""
        return any(hold.offset is not None or hold.page is not None for _, hold in self._all_holds())

    def filling(self) -> Iterator[tuple[Stream, Span]]:
        """Yield the ids that are being fetched, or are in the log and not committed yet."""
        for stream, hold in self._all_holds():
            if hold.offset is not None or hold.page is not None:
                for span in hold.spans:
                    yield stream, span

    def proofs(self, now_s: float) -> Iterator[tuple[Stream, Newest | None, Newest | None]]:
        """Yield of each stream the newest id that is proven committed, and the newest that should be and is not.

        Ids named less than the grace ago may only be on their way.
        """
        for stream, known in sorted(self._streams.items()):
            pending = known.pending
            overdue = pending is not None and now_s - pending.asked_s >= self._policy.grace_s
            yield stream, known.proven, known.latest if overdue else None

    def oldest_s(self, now_s: float) -> float:
        """Return for how long the longest open gap has been known, in seconds; 0 without one."""
        return max((now_s - seen for known in self._streams.values() for seen in known.seen.values()), default=0.0)

    # --- the rules

    def _pages(self, stream: Stream, now_s: float) -> Iterator[Page]:
        known = self._streams[stream]
        wanted = self._wanted(known, now_s)
        held = [span for hold in known.holds for span in hold.spans]
        free = deque(subtract([(hole.first, hole.last) for hole in wanted], held))
        rows, below = self._page_rows[stream[0]], 0
        while free:
            end = free[0][0] + rows - 1
            spans: list[Span] = []
            # Neighbours that fit are asked for together: an answer costs the same whatever it holds.
            while free and free[0][0] <= end:
                low, high = free.popleft()
                if high > end:
                    free.appendleft((end + 1, high))
                spans.append((low, min(high, end)))
            first, last = spans[0][0], spans[-1][1]
            while wanted[below].last < first:
                below += 1
            holes = [
                replace(hole, first=low, last=high)
                for hole in takewhile(lambda hole: hole.first <= last, islice(wanted, below, None))  # noqa: B023
                for low, high in intersect(spans, [(hole.first, hole.last)])
            ]
            yield Page(stream, first, last - first + 1, tuple(holes))

    def _wanted(self, known: Known, now_s: float) -> list[Hole]:
        wanted = []
        for hole in known.committed.holes:
            seen_s = known.seen[hole.first, hole.last]
            if hole.last - hole.first >= self._policy.max_gap_ids or now_s - seen_s < self._policy.grace_s:
                continue
            # Below an id that is ahead of its exchange lie ids that do not exist yet: they will come by themselves.
            named = known.named if hole.space == known.committed.space else None
            last = hole.last if named is None or named.asked_s < seen_s else min(hole.last, named.id)
            if hole.first <= last:
                wanted.append(replace(hole, last=last))
        return sorted([*wanted, *self._tail(known, now_s)], key=lambda hole: hole.first)

    def _tail(self, known: Known, now_s: float) -> list[Hole]:
        newest, view = known.pending, known.committed
        if newest is None or now_s - newest.asked_s < self._policy.grace_s:
            return []
        above = known.reached
        if above is None or not 0 < newest.id - above <= self._policy.max_gap_ids:
            return []
        return [Hole(above + 1, newest.id, view.head_us, None, view.space)]

    def _prove(self, known: Known) -> None:
        head = known.reached
        for candidate in (known.pending, known.latest):
            if head is not None and candidate is not None and candidate.id <= head:
                known.proven = candidate
        if known.pending is not None and known.proven is not None and known.pending.asked_s <= known.proven.asked_s:
            is_newer = known.latest is not None and known.latest.asked_s > known.proven.asked_s
            known.pending = known.latest if is_newer else None

    def _release(self, stream: Stream, known: Known, now_s: float) -> None:
        """Let go of ids that a snapshot has decided; those missing all the same will be tried again, and counted."""
        done = [hold for hold in known.holds if hold.offset is not None and hold.offset <= known.committed.offset]
        late = {id(hold) for hold in [*done, *(hold for hold in known.holds if hold.until_s <= now_s)]}
        known.holds = [hold for hold in known.holds if id(hold) not in late]
        spans = [span for hold in done for span in hold.spans]
        if not spans:
            return
        fruitless: list[Span] = []
        for hole in known.committed.holes:
            for span in intersect(spans, [(hole.first, hole.last)]):
                self._count(known, hole.space, span, fetched=True)
                fruitless.append(span)
        if fruitless:
            known.holds.append(Hold(fruitless, now_s + self._policy.retry_s))

    def _absent(
        self, known: Known, stream: Stream, hole: Hole, spans: Sequence[Span], newest: int, reason: str
    ) -> list[GiveUp]:
        seals: list[GiveUp] = []
        for span in spans:
            # An answer that goes on above the ids says that they are not there; an empty one may be a failure.
            enough = self._policy.lost_after_answers * (1 if newest > span[1] else EMPTY_ANSWERS)
            for part, times in self._count(known, hole.space, span, fetched=False):
                if times >= enough:
                    seals += _seals(stream, hole, [part], reason)
        return seals

    @staticmethod
    def _count(known: Known, space: str, span: Span, *, fetched: bool) -> list[tuple[Span, int]]:
        """Note that ids did not come; return pieces of the span with how often that was so in a row."""
        pieces: list[tuple[Span, int]] = []
        kept: list[Absence] = []
        for absence in known.absences:
            if (absence.space, absence.fetched) != (space, fetched):
                kept.append(absence)
                continue
            pieces += [(part, absence.times + 1) for part in intersect([absence.span], [span])]
            kept += [replace(absence, span=part) for part in subtract([absence.span], [span])]
        pieces += [(part, 1) for part in subtract([span], [part for part, _ in pieces])]
        known.absences = kept + [Absence(space, part, times, fetched) for part, times in pieces]
        return pieces

    @staticmethod
    def _absences_end(known: Known, space: str, came: Sequence[Span]) -> None:
        if came and known.absences:
            known.absences = [
                replace(absence, span=part)
                for absence in known.absences
                for part in (
                    [absence.span] if absence.fetched or absence.space != space else subtract([absence.span], came)
                )
            ]

    @staticmethod
    def _forget_absences(known: Known) -> None:
        """Forget about ids that are no longer missing."""
        if known.absences:
            missing = [(hole.first, hole.last) for hole in known.committed.holes]
            known.absences = [absence for absence in known.absences if intersect([absence.span], missing)]

    def _all_holds(self) -> Iterator[tuple[Stream, Hold]]:
        for stream, known in self._streams.items():
            for hold in known.holds:
                yield stream, hold


def _seals(stream: Stream, hole: Hole, spans: Sequence[Span], reason: str) -> list[GiveUp]:
    """Seal what of the ids lies in a gap; above the newest row there is none yet."""
    if hole.until_us is None:
        return []
    parts = intersect(spans, [(hole.first, hole.last)])
    return [GiveUp(stream, hole.space, low, high, reason) for low, high in parts]
