"""What is complete, what is missing, what cannot be proven: by ids, of every kind of range."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ray.errors import BadRequest
from k2ray.ledger import Gap
from k2ray.query.completeness import known_of, parse_completeness
from k2ray.query.proof import Asked, Known, Numbering, assess, ids_missing, unproven

S = 1_000_000
TOLERANCE_US = 2 * S


def gap(first: int, last: int, *, sealed: bool = False) -> Gap:
    """Trades happen one a second: id i at second i."""
    return Gap("binance", "BTCUSDT", "", first, last, (first - 1) * S, (last + 1) * S, sealed)


def numbering(*gaps: Gap, first: int = 100, last: int = 200, newest: bool = True) -> Numbering:
    return Numbering("binance", "BTCUSDT", "", newest, first, first * S, last, last * S, gaps)


def states(missing: Any) -> list[tuple[int, int, str]]:
    return [(piece.first_id, piece.last_id, piece.state) for piece in missing]


def test_without_gaps_what_is_stored_is_proven_up_to_the_last_question() -> None:
    verdict = assess(numbering(), Asked(), Known(200, 230 * S), TOLERANCE_US)
    assert (verdict.first_id, verdict.last_id, verdict.complete) == (100, 200, True)
    assert (verdict.proven_id, verdict.proven_us) == (200, 230 * S)
    assert verdict.reasons == ()


def test_nobody_asked_so_it_is_proven_up_to_the_last_row() -> None:
    verdict = assess(numbering(), Asked(), Known(), TOLERANCE_US)
    assert (verdict.complete, verdict.proven_us) == (True, 200 * S)


def test_each_missing_id_has_its_state() -> None:
    found = numbering(gap(110, 112), gap(120, 129), gap(150, 150, sealed=True))
    verdict = assess(found, Asked(), Known(203, 204 * S, ((120, 124), (203, 203))), TOLERANCE_US)
    assert states(verdict.missing) == [
        (110, 112, "open"),
        (120, 124, "filling"),
        (125, 129, "open"),
        (150, 150, "lost"),
        (201, 202, "open"),
        (203, 203, "filling"),
    ]
    assert verdict.complete is False
    assert ids_missing(verdict.missing) == 17
    assert (verdict.proven_id, verdict.proven_us) == (109, 109 * S)
    assert [reason.split()[0] for reason in verdict.reasons] == ["10", "6", "1"]


def test_trades_above_the_newest_row_are_missing_though_the_ledger_has_no_gap() -> None:
    verdict = assess(numbering(), Asked(), Known(205, 206 * S), TOLERANCE_US)
    assert states(verdict.missing) == [(201, 205, "open")]
    assert (verdict.complete, verdict.proven_id) == (False, 200)


def test_a_range_of_ids_ends_where_it_ends() -> None:
    found = numbering(gap(110, 112), gap(150, 160))
    inside = assess(found, Asked(first_id=113, last_id=149), Known(), TOLERANCE_US)
    assert (inside.complete, inside.first_id, inside.last_id) == (True, 113, 149)
    across = assess(found, Asked(first_id=111, last_id=155), Known(), TOLERANCE_US)
    assert states(across.missing) == [(111, 112, "open"), (150, 155, "open")]
    assert (across.first_id, across.last_id) == (113, 149)
    below = assess(found, Asked(first_id=90, last_id=105), Known(), TOLERANCE_US)
    assert states(below.missing) == [(90, 99, "unrecorded")]
    above = assess(numbering(), Asked(last_id=300), Known(200, 1), TOLERANCE_US)
    assert above.reasons == ("ids above the newest one are not known yet",)


def test_a_range_of_time_is_proven_by_a_newer_row_or_by_asking_later() -> None:
    def ask(end_s: int, known: Known, found: Numbering | None = None) -> bool | None:
        asked = Asked(start_us=120 * S, end_us=end_s * S, edges=(120, 199))
        return assess(found or numbering(), asked, known, TOLERANCE_US).complete

    assert ask(190, Known()) is True
    assert ask(200, Known()) is False, "a row of the range's last second may come late"
    assert ask(250, Known(200, 251 * S)) is True
    assert ask(250, Known(200, 249 * S)) is False
    assert ask(250, Known(210, 251 * S)) is False
    assert ask(190, Known(), numbering(gap(150, 151))) is False
    assert ask(140, Known(), numbering(gap(150, 151))) is True
    assert ask(190, Known(), numbering(gap(110, 115))) is True
    assert ask(190, Known(), numbering(gap(118, 121))) is False, "its trades may lie in the range"


def test_a_gap_in_which_the_clock_went_back_is_in_every_range_that_it_may_touch() -> None:
    back = Gap("binance", "BTCUSDT", "", 150, 159, 149 * S, 100 * S, False)
    found = numbering(back)
    for start, end in ((90, 105), (120, 130), (145, 300)):
        edges = (start, min(end, 200))
        verdict = assess(found, Asked(start_us=start * S, end_us=end * S, edges=edges), Known(), TOLERANCE_US)
        assert states(verdict.missing) == [(150, 159, "open")], (start, end)
    assert assess(found, Asked(start_us=170 * S, end_us=180 * S, edges=(170, 179)), Known(), TOLERANCE_US).complete


def test_before_the_first_row_nothing_is_known() -> None:
    verdict = assess(numbering(), Asked(start_us=50 * S, end_us=150 * S, edges=(100, 149)), Known(), TOLERANCE_US)
    assert verdict.complete is False
    assert "nothing was recorded before" in verdict.reasons[0]


def test_a_numbering_that_ended_needs_no_newer_id() -> None:
    old = numbering(newest=False)
    assert assess(old, Asked(), Known(900, 1), TOLERANCE_US).complete is True
    assert (
        assess(old, Asked(start_us=150 * S, end_us=900 * S, edges=(150, 200)), Known(), TOLERANCE_US).complete is True
    )


def test_ids_that_skip_prove_nothing_and_it_is_said() -> None:
    verdict = unproven(numbering(), Asked())
    assert (verdict.complete, verdict.missing, verdict.proven_id) == (None, (), None)
    assert "proves nothing" in verdict.reasons[0]


@given(st.data())
def test_a_range_is_complete_only_if_each_of_its_ids_is_stored(data: st.DataObject) -> None:
    """Against sets: whatever is missing, and whatever part of it is asked for."""
    edges = sorted(data.draw(st.sets(st.integers(102, 198), max_size=8)))
    gaps = [gap(low, high) for low, high in zip(edges[::2], edges[1::2], strict=False) if low <= high]
    gaps = [one for at, one in enumerate(gaps) if at == 0 or one.first_id > gaps[at - 1].last_id + 1]
    lost = {i for one in gaps for i in range(one.first_id, one.last_id + 1)}
    low = data.draw(st.integers(90, 200))
    high = data.draw(st.integers(low, 210))
    newest = data.draw(st.integers(200, 215))
    verdict = assess(numbering(*gaps), Asked(first_id=low, last_id=high), Known(newest, 1), TOLERANCE_US)
    stored = set(range(100, 201)) - lost
    wanted = set(range(low, high + 1))
    assert verdict.complete == (wanted <= stored)
    missing = {i for one in verdict.missing for i in range(one.first_id, one.last_id + 1)}
    assert missing == {i for i in wanted - stored if i <= newest}
    if verdict.proven_id is not None and verdict.first_id is not None:
        assert set(range(verdict.first_id, verdict.proven_id + 1)) <= stored


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"channel": "trade"}, "channel", "agg_trades"),
        ({"first_id": "x"}, "first_id", "whole number"),
        ({"first_id": "-1"}, "first_id", "whole number"),
        ({"first_id": "9", "last_id": "8"}, "last_id", "below"),
        ({"first_id": "9", "start": "2026-01-01T00:00:00Z"}, "first_id", "one of them"),
        ({"start": "yesterday"}, "start", "not a time"),
        ({"symbol": "BTCUSDT"}, "symbol", "symbols"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(given: dict[str, str], field: str, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_completeness(given)
    assert caught.value.field == field
    assert words in caught.value.reason


def test_what_the_backfill_knows_comes_from_the_status() -> None:
    proof = {"channel": "trades", "symbol": "BTCUSDT", "newest_id": 9, "asked_us": 7, "proven": True}
    detail = {"proofs": [proof], "filling": [["trades", "BTCUSDT", 3, 4], ["trades", "ETHUSDT", 1, 1]]}
    status = {
        "actors": [
            {"role": "feed", "name": "feed:binance:0#1"},
            {"role": "backfill", "name": "backfill:binance#2", "detail": detail},
        ]
    }
    assert known_of(status) == {("binance", "trades", "BTCUSDT"): Known(9, 7, ((3, 4),))}
    assert known_of({}) == {}
