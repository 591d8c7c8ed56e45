"""The exchange's clock steps while its ids go on: the same numbering, gaps provable. Restarts still open another."""

from __future__ import annotations

import pytest

from k2ray.ledger import Ledger, LedgerParams, decode_ledger, encode_ledger
from k2ray.ledger.intervals import STEPS_BACK_KEPT
from tests.support.market_clock import hidden_steps, stepped_log
from tests.support.market_log import PARTITION, SECOND, Row, batch_of, hidden_restarts, judge, run

T0 = 1_700_000_000 * SECOND
HOUR = 3_600
SEEDS = 6


def trade(row_id: int, at_s: float) -> Row:
    return Row("BTCUSDT", "", 0, row_id, row_id - 1, T0 + round(at_s * SECOND))


def trades(first: int, last: int, at_s: float) -> list[Row]:
    """Ids `first` to `last`, one a second, the first one at `at_s`."""
    return [trade(row_id, at_s + row_id - first) for row_id in range(first, last + 1)]


def spaces_of(ledger: Ledger, rows: list[Row]) -> list[str]:
    """Decide rows that are all new; return their numberings."""
    decision = ledger.decide(PARTITION, batch_of(rows))
    assert decision.keep.all()
    return [""] * len(rows) if decision.space is None else decision.space.to_pylist()


def gaps(ledger: Ledger) -> list[tuple[str, int, int]]:
    return [(gap.sequence_space, gap.first_id, gap.last_id) for gap in ledger.gaps()]


def hours(ids: int = 2 * HOUR) -> Ledger:
    """Return a ledger that has seen ids 1 to 7,200, one a second."""
    ledger = Ledger()
    assert set(spaces_of(ledger, trades(1, ids, 0))) == {""}
    return ledger


@pytest.mark.parametrize("table", ["trades", "quotes"])
def test_no_step_of_the_clock_loses_doubles_or_opens_a_numbering(table: str) -> None:
    judged = back = 0
    for seed in range(SEEDS):
        rows, params, steps = stepped_log(seed, table)
        unjudged = hidden_steps(rows, params)
        verdict = judge(rows, run(rows, params, seed, restart=True), unjudged)
        assert not verdict, f"seed {seed}: {verdict}"
        judged += len({(row.symbol, row.base) for row in rows} - hidden_restarts(rows) - unjudged)
        back += steps
    assert judged > 1.2 * SEEDS
    assert back >= SEEDS


def test_decisions_on_a_stepping_clock_do_not_depend_on_batches_or_restarts() -> None:
    for seed, table in ((200, "trades"), (201, "quotes")):
        rows, params, _ = stepped_log(seed, table)
        one_by_one = run(rows, params, seed, largest=2)
        large = run(rows, params, seed, largest=3_000, restart=True)
        assert one_by_one.keep == large.keep
        assert encode_ledger(one_by_one.ledger, {}) == encode_ledger(large.ledger, {}), f"seed {seed}"


def test_ids_that_go_on_keep_their_numbering_when_the_clock_steps_by_an_hour_both_ways() -> None:
    ledger = Ledger()
    rows = trades(1, 50, 0) + trades(51, 100, HOUR) + trades(101, 150, -HOUR) + trades(151, 9_000, 0)
    for at in range(0, len(rows), 33):
        assert set(spaces_of(ledger, rows[at : at + 33])) == {""}
    assert gaps(ledger) == []
    assert not ledger.decide(PARTITION, batch_of(rows)).keep.any(), "and all of it comes again"
    restored, _ = decode_ledger(encode_ledger(ledger, {}))
    assert not restored.decide(PARTITION, batch_of(rows[::-1])).keep.any()


def test_a_gap_just_where_the_clock_stepped_back_could_not_be_proved() -> None:
    ledger = hours()
    assert set(spaces_of(ledger, trades(7_211, 7_300, 7_210 - HOUR))) == {""}
    assert gaps(ledger) == [("", 7_201, 7_210)]
    late = [trade(7_203, 7_202), trade(7_208, 7_207 - HOUR), trade(7_206, 7_205), trade(7_207, 7_206 - HOUR)]
    assert set(spaces_of(ledger, late)) == {""}
    rest = [trade(row_id, row_id - 1) for row_id in (7_201, 7_202, 7_204, 7_205)]
    rest += [trade(row_id, row_id - 1 - HOUR) for row_id in (7_210, 7_209)]
    assert set(spaces_of(ledger, rest)) == {""}
    assert gaps(ledger) == []
    assert not ledger.decide(PARTITION, batch_of([*late, *rest, *trades(7_211, 7_300, 7_210 - HOUR)])).keep.any()


def test_a_restart_after_a_step_back_is_still_a_restart() -> None:
    ledger = hours()
    assert set(spaces_of(ledger, trades(7_201, 7_201 + 2 * HOUR, HOUR))) == {""}
    assert set(spaces_of(ledger, trades(1, 500, 3 * HOUR + 60))) == {"#2"}
    assert set(spaces_of(ledger, trades(501, 600, 3 * HOUR + 700))) == {"#2"}
    assert set(spaces_of(ledger, trades(601, 700, 3 * HOUR + 100))) == {"#2"}, "its own clock steps back"
    assert gaps(ledger) == []


def test_a_restart_before_the_clock_has_caught_up_loses_nothing() -> None:
    ledger = hours()
    spaces_of(ledger, trades(7_201, 7_300, HOUR))
    assert set(spaces_of(ledger, trades(1, 500, HOUR + 160))) == {"#2"}
    spaces_of(ledger, trades(501, 9_000, HOUR + 660))
    assert ledger.summary().missing_ids == 0


def test_a_clock_that_steps_back_to_before_a_restart_opens_a_numbering() -> None:
    """Two numberings have had these times: what is late of the one must not be taken for the other's."""
    ledger = hours()
    assert set(spaces_of(ledger, trades(1, 600, 7_300))) == {"#2"}
    assert set(spaces_of(ledger, trades(601, 700, 7_900 - HOUR))) == {"#3"}
    assert set(spaces_of(ledger, trades(7_201, 7_250, 7_200))) == {""}, "late of the first"


def test_yesterdays_file_of_an_earlier_numbering_is_no_step_of_the_clock() -> None:
    for first in (1, 4_000, 7_190, 7_195):
        ledger = hours()
        file = trades(first, first + 500, -9_000)
        assert set(spaces_of(ledger, file)) == {"#2"}, first
        assert set(spaces_of(ledger, trades(7_201, 7_300, 7_200))) == {""}
        assert not ledger.decide(PARTITION, batch_of(file)).keep.any()


def test_an_earlier_numbering_first_seen_right_above_the_newest_id_takes_its_place_and_loses_nothing() -> None:
    """The one coincidence that looks like a step: ids right above, times before the first row, within three hours."""
    ledger = hours()
    file = trades(7_201, 7_700, -800)
    assert set(spaces_of(ledger, file)) == {""}, "wrong, and nobody could tell from ids and times"
    live = trades(7_201, 7_700, 7_200)
    assert set(spaces_of(ledger, live)) == {"#2"}
    assert not ledger.decide(PARTITION, batch_of(file + live)).keep.any()


def test_an_earlier_numbering_found_later_does_not_shut_out_what_came_after_a_step_back() -> None:
    """It ended a numbering's past at its first row, though rows were older than that: they came twice."""
    ledger = hours(600)
    stepped = trades(601, 700, 600 - HOUR)
    assert set(spaces_of(ledger, stepped)) == {""}
    spaces_of(ledger, trades(20, 60, 650 - HOUR))
    assert not ledger.decide(PARTITION, batch_of(stepped)).keep.any()


def test_a_clock_that_steps_back_before_the_first_row_over_a_gap_opens_a_numbering() -> None:
    """As long as recording has not lasted longer than the step, times do not tell it from an earlier numbering."""
    ledger = hours(600)
    assert set(spaces_of(ledger, trades(650, 700, 650 - HOUR))) == {"#2"}
    ledger = hours(600)
    assert set(spaces_of(ledger, trades(601, 700, 600 - HOUR))) == {""}, "no gap: the ids tell"


def test_a_clock_that_went_back_and_ahead_unseen_leaves_its_rows_in_another_numbering() -> None:
    """An outage longer than the step hides it: what is fetched for it later is in time once the clock has passed it."""
    ledger = hours()
    assert set(spaces_of(ledger, trades(13_000, 13_100, 13_000 - HOUR))) == {""}
    assert spaces_of(ledger, [trade(12_000, 12_000)]) == ["#2"], "newer than all that is known: like a restart's"
    ledger = hours()
    spaces_of(ledger, trades(13_000, 13_100 + HOUR, 13_000 - HOUR))
    assert spaces_of(ledger, [trade(12_000, 12_000)]) == [""]


def test_steps_back_are_remembered_exactly_and_only_so_many() -> None:
    ledger, rows = Ledger(), trades(1, 200, 0)
    for step in range(STEPS_BACK_KEPT + 3):
        rows += trades(201 + 20 * step, 220 + 20 * step, 200 + 10 * step)
    decision = ledger.decide(PARTITION, batch_of(rows))
    assert decision.keep.all()
    assert ledger.summary().spaces == 2
    assert ledger.instruments()[0].spaces[0].intervals.steps_back(ledger.params.tolerance_us) == STEPS_BACK_KEPT
    assert not ledger.decide(PARTITION, batch_of(rows)).keep.any()
    assert len(encode_ledger(ledger, {})) < 20_000


def test_a_wrong_time_at_the_next_id_ends_nothing() -> None:
    ledger = hours()
    rows = [trade(7_201, 7_200), trade(7_202, 5_000), trade(7_203, 7_202), trade(7_204, 7_203 + HOUR)]
    assert set(spaces_of(ledger, rows + trades(7_205, 7_300, 7_204))) == {""}
    assert gaps(ledger) == []
    assert not ledger.decide(PARTITION, batch_of(rows)).keep.any()


def test_file_spaces_keep_few_marks_however_their_times_jump() -> None:
    ledger = Ledger()
    rows = [Row("BHP", "file:ab12", 0, row_id, row_id - 1, T0 - row_id * 10 * SECOND) for row_id in range(1, 20_000)]
    assert ledger.decide(PARTITION, batch_of(rows)).keep.all()
    assert len(ledger.instruments()[0].spaces[0].intervals.marks[0]) <= 80


def test_quotes_stamped_by_a_host_whose_clock_steps_keep_their_numbering() -> None:
    ledger = Ledger(LedgerParams.for_table("quotes"))
    rows = trades(1, 9_000, 0) + trades(9_001, 9_500, 9_000 - HOUR) + trades(9_501, 9_600, 9_500)
    assert set(spaces_of(ledger, rows)) == {""}
    assert not ledger.decide(PARTITION, batch_of(rows)).keep.any()
