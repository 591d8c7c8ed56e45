"""The planner against a made-up exchange and ledger: whatever happens in between, ids come or are lost, once each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.backfill.model import Answer, Committed, GiveUp, Hole, Newest, Page, Policy, Stream
from k2ray.backfill.plan import BEGAN_ANEW, DEAD, ELSEWHERE, EMPTY_ANSWERS, GONE, VOID, Planner
from k2ray.backfill.spans import Span, intersect, of_ids, subtract

BTC: Stream = ("trades", "BTCUSDT")
ETH: Stream = ("trades", "ETHUSDT")
POLICY = Policy(grace_s=10, retry_s=5, lost_after_answers=3, max_gap_ids=100_000)
STEP_US = 1_000


def planner(policy: Policy = POLICY, page_rows: int = 100) -> Planner:
    return Planner(policy, {"trades": page_rows})


def hole(first: int, last: int, space: str = "") -> Hole:
    return Hole(first, last, (first - 1) * STEP_US, (last + 1) * STEP_US, space)


def answer(ids: list[int], void: list[int] | None = None, dead: list[int] | None = None, late_us: int = 0) -> Answer:
    numbers = np.array(ids, dtype=np.int64)
    return Answer(numbers - 1, numbers, numbers * STEP_US + late_us, void or [], dead or [])


def spans(pages: list[Page]) -> list[tuple[int, int]]:
    return [(page.first, page.first + page.rows - 1) for page in pages]


def test_a_gap_is_asked_for_after_its_grace_and_not_before() -> None:
    plan = planner()
    plan.observe({BTC: Committed((hole(5, 9),), 20, 20_000)}, 100.0)
    assert plan.next(109.9, 4) == []
    assert spans(plan.next(110.0, 4)) == [(5, 9)]


def test_what_is_left_of_a_gap_keeps_its_age() -> None:
    plan = planner()
    plan.observe({BTC: Committed((hole(5, 9),), 20, 20_000)}, 100.0)
    plan.observe({BTC: Committed((hole(5, 6), hole(9, 9)), 20, 20_000)}, 109.0)
    assert spans(plan.next(110.0, 4)) == [(5, 9)]


def test_pages_are_bounded_and_neighbours_share_one() -> None:
    plan = planner()
    plan.observe({BTC: Committed((hole(1, 250), hole(260, 270), hole(5_000, 5_000)), 9_000, 0)}, 0.0)
    pages = plan.next(20.0, 10)
    assert spans(pages) == [(1, 100), (101, 200), (201, 270), (5_000, 5_000)]
    assert [(part.first, part.last) for part in pages[2].holes] == [(201, 250), (260, 270)]


def test_symbols_take_turns() -> None:
    plan = planner()
    plan.observe({BTC: Committed((hole(1, 5_000),), 9_000, 0), ETH: Committed((hole(1, 10),), 9_000, 0)}, 0.0)
    assert {page.stream for page in plan.next(20.0, 2)} == {BTC, ETH}


def test_ids_under_way_or_waiting_for_their_commit_are_not_asked_for_again() -> None:
    plan = planner()
    view = Committed((hole(5, 9),), 20, 20_000, offset=40)
    plan.observe({BTC: view}, 0.0)
    (page,) = plan.next(10.0, 4)
    assert plan.next(11.0, 4) == []
    keep, seals = plan.answered(page, answer([5, 6, 7, 8, 9, 10]), 11.0)
    assert keep.tolist() == [True] * 5 + [False]
    assert seals == []
    plan.produced(page, 50, 11.0)
    for now_s in (12.0, 60.0):
        plan.observe({BTC: view}, now_s)
        assert plan.next(now_s, 4) == []
    assert list(plan.filling()) == [(BTC, (5, 9))]
    plan.observe({BTC: Committed((), 20, 20_000, offset=50)}, 61.0)
    assert not plan.busy
    assert plan.next(100.0, 4) == []


def test_rows_that_are_not_committed_for_long_are_fetched_anew() -> None:
    plan = planner()
    view = Committed((hole(5, 9),), 20, 20_000, offset=40)
    plan.observe({BTC: view}, 0.0)
    (page,) = plan.next(10.0, 4)
    plan.answered(page, answer([5, 6, 7, 8, 9]), 11.0)
    plan.produced(page, 50, 11.0)
    plan.observe({BTC: view}, 11.0 + POLICY.commit_timeout_s)
    assert spans(plan.next(11.0 + POLICY.commit_timeout_s, 4)) == [(5, 9)]


def test_a_failed_page_is_asked_for_again() -> None:
    plan = planner()
    plan.observe({BTC: Committed((hole(5, 9),), 20, 20_000)}, 0.0)
    (page,) = plan.next(10.0, 4)
    plan.failed(page)
    assert spans(plan.next(10.0, 4)) == [(5, 9)]


def test_an_answer_that_starts_later_is_believed_after_several_and_then_sealed() -> None:
    plan = planner()
    view = Committed((hole(5, 9),), 20, 20_000)
    plan.observe({BTC: view}, 0.0)
    now_s = 10.0
    for attempt in range(3):
        (page,) = plan.next(now_s, 4)
        keep, seals = plan.answered(page, answer([10, 11]), now_s)
        assert not keep.any()
        assert seals == ([GiveUp(BTC, "", 5, 9, GONE)] if attempt == 2 else [])
        plan.produced(page, 70 if seals else None, now_s)
        assert plan.next(now_s + POLICY.retry_s - 0.1, 4) == [], "not at once"
        now_s += POLICY.retry_s
        plan.observe({BTC: view}, now_s)
    assert plan.next(now_s + 100, 4) == [], "the seal is on its way"


def test_ids_that_come_in_between_are_counted_anew() -> None:
    plan = planner()
    view = Committed((hole(5, 9),), 20, 20_000)
    plan.observe({BTC: view}, 0.0)
    (page,) = plan.next(10.0, 4)
    plan.answered(page, answer([]), 10.0)
    plan.produced(page, None, 10.0)
    plan.observe({BTC: view}, 15.0)
    (page,) = plan.next(15.0, 4)
    keep, seals = plan.answered(page, answer([5, 6, 7, 10]), 15.0)
    assert keep.tolist() == [True] * 3 + [False]
    plan.produced(page, 41, 15.0)
    left = Committed((hole(8, 9),), 20, 20_000, offset=41)
    plan.observe({BTC: left}, 20.0)
    (page,) = plan.next(20.0, 4)
    assert spans([page]) == [(8, 9)]
    _, seals = plan.answered(page, answer([10]), 20.0)
    assert [(seal.first, seal.last) for seal in seals] == [(8, 9)], "the third answer in a row without them"


def test_empty_answers_are_believed_much_later() -> None:
    """An exchange in trouble answers with nothing; that must not cost ids for good."""
    plan = planner()
    view = Committed((hole(5, 9),), 20, 20_000)
    plan.observe({BTC: view}, 0.0)
    now_s, answers = 10.0, 0
    seals: list[GiveUp] = []
    while not seals:
        for page in plan.next(now_s, 4):
            answers += 1
            _, seals = plan.answered(page, answer([]), now_s)
            plan.produced(page, 41 if seals else None, now_s)
        now_s += POLICY.retry_s
        plan.observe({BTC: view}, now_s)
    assert answers == POLICY.lost_after_answers * EMPTY_ANSWERS


def test_other_trades_under_the_same_ids_are_not_the_missing_ones() -> None:
    plan = planner(Policy(10, 5, 1, 1_000))
    plan.observe({BTC: Committed((hole(5, 9, "#2"),), 20, 20_000)}, 0.0)
    (page,) = plan.next(10.0, 4)
    keep, seals = plan.answered(page, answer([5, 6, 7, 8, 9], late_us=3_600_000_000), 10.0)
    assert not keep.any()
    assert seals == [GiveUp(BTC, "#2", 5, 9, BEGAN_ANEW)]


def test_rows_of_a_gap_in_which_the_exchanges_clock_went_back_are_fetched_and_not_given_up() -> None:
    """Before the step they are later than the row above the gap, after it earlier than the row below."""
    hour = 3_600_000_000
    plan = planner(Policy(10, 5, 1, 1_000))
    plan.observe({BTC: Committed((Hole(5, 9, 4 * STEP_US, 10 * STEP_US - hour, ""),), 20, 20 * STEP_US - hour)}, 0.0)
    (page,) = plan.next(10.0, 4)
    numbers = np.array([5, 6, 7, 8, 9], dtype=np.int64)
    times = numbers * STEP_US - np.where(numbers > 7, hour, 0)
    keep, seals = plan.answered(page, Answer(numbers - 1, numbers, times, [], []), 10.0)
    assert (keep.all(), seals) == (True, [])


def test_rows_of_a_gap_may_be_as_late_as_what_the_numbering_has_seen_since() -> None:
    """The clock went back in the gap by less than the gap was long; a restart's trades are later than all that."""
    plan = planner(Policy(10, 5, 1, 1_000))
    view = Committed((hole(5, 9),), 20, 60_000_000)
    for late_us, timely in ((30_000_000, True), (70_000_000, False)):
        plan.observe({BTC: view}, 0.0)
        (page,) = plan.next(20.0, 4)
        keep, seals = plan.answered(page, answer([5, 6, 7, 8, 9], late_us=late_us), 20.0)
        assert (keep.all(), len(seals)) == (timely, 0 if timely else 1)
        plan.failed(page)


def test_void_and_unstorable_ids_are_sealed_at_once() -> None:
    plan = planner()
    plan.observe({BTC: Committed((hole(5, 9),), 20, 20_000)}, 0.0)
    (page,) = plan.next(10.0, 4)
    keep, seals = plan.answered(page, answer([5, 8, 9], void=[6], dead=[7]), 10.0)
    assert keep.all()
    assert seals == [GiveUp(BTC, "", 6, 6, VOID), GiveUp(BTC, "", 7, 7, DEAD)]


def test_a_row_that_covers_void_ids_before_it_closes_them_too() -> None:
    plan = planner()
    plan.observe({BTC: Committed((hole(5, 9),), 20, 20_000)}, 0.0)
    (page,) = plan.next(10.0, 4)
    found = Answer(np.array([4, 6]), np.array([6, 9]), np.array([6_000, 9_000]), void=[5, 7, 8])
    keep, seals = plan.answered(page, found, 10.0)
    assert keep.all()
    assert seals == []


def test_an_absurd_gap_is_sealed_and_never_asked_for() -> None:
    plan = planner()
    view = {BTC: Committed((hole(1, 200_000), hole(300_000, 300_001)), 400_000, 0)}
    plan.observe(view, 0.0)
    (seal,) = plan.give_ups()
    assert (seal.first, seal.last) == (1, 200_000)
    assert "max_gap_ids" in seal.reason
    plan.sealed([seal], {BTC: 90}, 0.0)
    assert plan.give_ups() == []
    assert spans(plan.next(20.0, 4)) == [(300_000, 300_001)]


def test_rows_that_are_committed_and_do_not_help_are_not_fetched_for_ever() -> None:
    plan = planner()
    pages, offset, now_s = 0, 40, 0.0
    view = Committed((hole(5, 9),), 20, 20_000, offset=offset)
    plan.observe({BTC: view}, now_s)
    for _ in range(50):
        now_s += 10
        for page in plan.next(now_s, 4):
            pages += 1
            plan.answered(page, answer([5, 6, 7, 8, 9]), now_s)
            offset += 1
            plan.produced(page, offset, now_s)
        seals = plan.give_ups()
        if seals:
            break
        plan.observe({BTC: Committed((hole(5, 9),), 20, 20_000, offset=offset)}, now_s)
    assert pages == POLICY.lost_after_answers
    assert seals == [GiveUp(BTC, "", 5, 9, ELSEWHERE)]


# --- above the newest row


def test_trades_missed_at_the_end_of_a_session_are_fetched_and_then_proven() -> None:
    plan = planner()
    plan.observe({BTC: Committed((), 20, 20_000, offset=1)}, 0.0)
    plan.newest(BTC, Newest(25, 77, 0.0))
    assert plan.next(9.0, 4) == [], "they may only be late"
    (page,) = plan.next(10.0, 4)
    assert spans([page]) == [(21, 25)]
    keep, seals = plan.answered(page, answer([21, 22, 23, 24, 25]), 10.0)
    assert (keep.all(), seals) == (True, [])
    plan.produced(page, 2, 10.0)
    assert {stream: proven for stream, proven, _ in plan.proofs(10.0)}[BTC] is None
    plan.observe({BTC: Committed((), 25, 25_000, offset=2)}, 12.0)
    assert {stream: proven for stream, proven, _ in plan.proofs(12.0)}[BTC] == Newest(25, 77, 0.0)


def test_above_the_newest_row_nothing_is_sealed() -> None:
    plan = planner(Policy(10, 5, 1, 1_000))
    plan.observe({BTC: Committed((), 20, 20_000, offset=1)}, 0.0)
    plan.newest(BTC, Newest(25, 77, 0.0))
    (page,) = plan.next(10.0, 4)
    assert plan.answered(page, answer([]), 10.0)[1] == []
    plan.produced(page, None, 10.0)
    assert plan.next(10.0, 4) == [], "not at once"
    assert spans(plan.next(10.0, 4)) == []
    plan.observe({BTC: Committed((), 20, 20_000, offset=1)}, 15.0)
    assert spans(plan.next(15.0, 4)) == [(21, 25)]


def test_a_symbol_without_a_row_is_followed_from_the_first_newest_id() -> None:
    plan = planner()
    plan.observe({BTC: Committed()}, 0.0)
    plan.newest(BTC, Newest(25, 1, 0.0))
    assert plan.next(20.0, 4) == [], "what was before nobody wanted"
    plan.newest(BTC, Newest(27, 2, 30.0))
    assert spans(plan.next(40.0, 4)) == [(26, 27)]


def test_a_newest_id_below_what_is_stored_proves_nothing() -> None:
    """The exchange may have begun its ids anew while no feed was there to see it."""
    plan = planner()
    plan.observe({BTC: Committed((), 20, 20_000)}, 0.0)
    plan.newest(BTC, Newest(3, 77, 1.0))
    assert list(plan.proofs(50.0)) == [(BTC, None, None)]


def test_ids_named_just_now_are_not_yet_overdue() -> None:
    """With commits every few seconds the newest id is never stored yet: that is not a gap."""
    plan = planner()
    plan.observe({BTC: Committed((), 20, 20_000)}, 0.0)
    first, second = Newest(20, 1, 0.0), Newest(25, 2, 60.0)
    plan.newest(BTC, first)
    plan.newest(BTC, second)
    assert list(plan.proofs(69.0)) == [(BTC, first, None)]
    assert list(plan.proofs(70.0)) == [(BTC, first, second)]


def test_newest_ids_of_an_older_numbering_are_forgotten() -> None:
    """Ids 21 to 5,000 of the new numbering do not exist; asking for them would take all the weight there is."""
    plan = planner()
    plan.observe({BTC: Committed((), 4_000, 4_000)}, 0.0)
    plan.newest(BTC, Newest(5_000, 1, 1.0))
    plan.observe({BTC: Committed((), 20, 5_000, "#2")}, 2.0)
    assert plan.next(100.0, 4) == []
    plan.newest(BTC, Newest(22, 2, 101.0))
    assert spans(plan.next(111.0, 4)) == [(21, 22)]


def test_ids_that_do_not_exist_yet_are_not_asked_for() -> None:
    """A row with an id far ahead leaves a gap that only time can fill."""
    plan = planner()
    plan.observe({BTC: Committed((hole(21, 90_000),), 90_001, 0)}, 0.0)
    plan.newest(BTC, Newest(25, 1, 1.0))
    assert spans(plan.next(11.0, 4)) == [(21, 25)]


def test_above_the_newest_row_any_time_is_possible() -> None:
    plan = planner()
    plan.observe({BTC: Committed((), 20, 20_000, offset=1)}, 0.0)
    plan.newest(BTC, Newest(22, 77, 0.0))
    (page,) = plan.next(10.0, 4)
    keep, _ = plan.answered(page, answer([21, 22], late_us=-3_600_000_000), 10.0)
    assert keep.all()


def test_newer_newest_ids_do_not_put_off_the_proof_for_ever() -> None:
    plan = planner()
    plan.observe({BTC: Committed((), 20, 20_000)}, 0.0)
    for now_s in range(12):
        plan.newest(BTC, Newest(25 + now_s, now_s, float(now_s)))
    assert spans(plan.next(11.0, 4)) == [(21, 25)]


# --- all of it together


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_in_the_end_every_id_has_come_or_is_lost(data: st.DataObject) -> None:
    """Random gaps, horizons, voids, failures, crashes and slow commits; a ledger made of sets judges."""
    top = data.draw(st.integers(50, 400), label="top")
    covered = set(range(1, top + 1)) - {
        number
        for first, width in data.draw(st.lists(st.tuples(st.integers(2, top - 1), st.integers(1, 90)), max_size=6))
        for number in range(first, min(first + width, top))
    }
    horizon = data.draw(st.integers(1, top), label="horizon")
    void = set(data.draw(st.lists(st.integers(1, top), max_size=5), label="void"))
    newest = top + data.draw(st.integers(0, 60), label="above")
    policy = Policy(grace_s=2, retry_s=3, lost_after_answers=2, max_gap_ids=10_000, commit_timeout_s=50)
    plan = planner(policy, page_rows=data.draw(st.integers(1, 40), label="page"))
    log: list[tuple[list[int], list[Span]]] = []
    sealed: list[Span] = []
    committed = 0
    missing_before = set(range(1, top + 1)) - covered
    produced: list[int] = []

    def view() -> Committed:
        head = max(covered)
        spans_missing = subtract(subtract([(1, head)], of_ids(np.array(sorted(covered)))), sealed)
        return Committed(tuple(hole(*span) for span in spans_missing), head, head * STEP_US, "", committed)

    for turn in range(600):
        now_s = float(turn)
        if turn < 60 and data.draw(st.integers(0, 30)) == 0:
            plan = planner(policy, page_rows=data.draw(st.integers(1, 40)))  # a crash forgets everything
        while committed < len(log) and (turn > 60 or data.draw(st.booleans())):
            rows, seals = log[committed]
            covered |= set(rows)
            sealed += seals
            committed += 1
        plan.observe({BTC: view()}, now_s)
        if turn % 5 == 0:
            plan.newest(BTC, Newest(newest, turn, now_s))
        pages = plan.next(now_s, 3)
        under_way = [span for page in pages for span in page.spans]
        assert sum(last - first + 1 for first, last in under_way) == sum(
            last - first + 1 for first, last in intersect(under_way, under_way)
        ), "an id is asked for once at a time"
        for page in pages:
            assert page.rows <= 40
            if turn < 60 and data.draw(st.integers(0, 4)) == 0:
                plan.failed(page)
                continue
            ids = list(range(max(horizon, page.first), newest + 1))[: page.rows]
            keep, seals = plan.answered(
                page, answer([i for i in ids if i not in void], void=[i for i in ids if i in void]), now_s
            )
            kept = [number for number, is_kept in zip([i for i in ids if i not in void], keep, strict=True) if is_kept]
            if kept or seals:
                log.append((kept, [(seal.first, seal.last) for seal in seals]))
                produced += kept
            plan.produced(page, len(log) if kept or seals else None, now_s)
        if turn > 150 and not plan.busy and not view().holes and max(covered) + len(void) >= newest:
            break
    lost = {number for first, last in sealed for number in range(first, last + 1)} - covered
    assert covered >= {number for number in missing_before if number >= horizon and number not in void}
    assert lost <= {number for number in missing_before if number < horizon or number in void}
    assert not view().holes
    assert covered >= set(range(max(top + 1, horizon), newest + 1)) - void
    assert set(produced) <= missing_before | set(range(top + 1, newest + 1)), "only what is missing is produced"


@pytest.mark.parametrize("gaps", [10_000])
def test_ten_thousand_gaps_are_planned_within_a_second(gaps: int) -> None:
    import time

    plan = planner(page_rows=1_000)
    view = {BTC: Committed(tuple(hole(n * 10, n * 10 + 3) for n in range(1, gaps)), gaps * 10 + 9, 0)}
    start_s = time.process_time()
    plan.observe(view, 0.0)
    pages = plan.next(20.0, 8)
    plan.observe(view, 21.0)
    assert time.process_time() - start_s < 1.0
    assert len(pages) == 8
