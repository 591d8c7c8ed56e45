"""The ledger's rules, one by one, and the traps that simpler trackers fell into."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.errors import BadRecord
from k2ray.ledger import Ledger, LedgerParams, decode_ledger, encode_ledger
from k2ray.wire.codec import Seal
from tests.support.market_log import PARTITION, SECOND, Row, batch_of

T0 = 1_700_000_000 * SECOND


def trade(row_id: int, at_s: float | None = None, symbol: str = "BTCUSDT", base: str = "") -> Row:
    time_us = T0 + round((row_id if at_s is None else at_s) * SECOND)
    return Row(symbol, base, 0, row_id, row_id - 1, time_us)


def quote(start: int, row_id: int, at_s: float | None = None) -> Row:
    return Row("BTCUSDT", "", 0, row_id, start, T0 + round((row_id if at_s is None else at_s) * SECOND))


def decide(ledger: Ledger, *rows: Row) -> list[bool]:
    kept: list[bool] = ledger.decide(PARTITION, batch_of(rows)).keep.tolist()
    return kept


def covered(ledger: Ledger) -> list[tuple[int, int]]:
    intervals = ledger.instruments()[0].spaces[0].intervals
    return list(zip(intervals.lo, intervals.hi, strict=True))


def seal(low: int, high: int, space: str = "", symbol: str = "BTCUSDT") -> Seal:
    return Seal("sim", symbol, space, low, high, "test")


def test_tracker_survives_gap_reorder_and_reset_without_sticking() -> None:
    """Trap 4: a tracker that raised on every gap and out-of-order event, then stuck; resets it never recognised."""
    ledger = Ledger()
    assert decide(ledger, trade(1), trade(2), trade(5)) == [True, True, True]
    assert [(gap.first_id, gap.last_id) for gap in ledger.gaps()] == [(3, 4)]
    assert decide(ledger, trade(4), trade(3), trade(6)) == [True, True, True]
    assert ledger.gaps() == []
    assert decide(ledger, *(trade(row_id) for row_id in range(7, 100))) == [True] * 93
    restarted = ledger.decide(PARTITION, batch_of([trade(1, 500), trade(2, 501), trade(3, 502)]))
    assert restarted.keep.all()
    assert restarted.space is not None
    assert restarted.space.to_pylist() == ["#2", "#2", "#2"]
    assert [event.kind for event in restarted.events] == ["space_opened"]
    assert covered(ledger) == [(0, 99)]


def test_identity_is_not_the_id_alone() -> None:
    """Trap 5: `BINANCE-{t}` without the symbol is no identity; random ids removed no duplicates from replays."""
    ledger = Ledger()
    rows = [trade(7), trade(7, symbol="ETHUSDT"), trade(7, base="agg"), trade(7)]
    assert decide(ledger, *rows) == [True, True, True, False]
    assert decide(ledger, *rows) == [False] * 4


def test_audit_is_by_ids_not_counts() -> None:
    """Trap 20: a full load appended twice, a strict `>` on timestamps, an audit by counts."""
    ledger = Ledger()
    rows = [trade(row_id, 1) for row_id in range(1, 300)]  # all at the same instant
    assert all(decide(ledger, *rows))
    again = ledger.decide(PARTITION, batch_of(rows))
    assert (again.duplicates, int(again.keep.sum())) == (299, 0)


def test_quote_overlapping_what_is_covered_is_new_unless_its_own_id_is() -> None:
    ledger = Ledger(LedgerParams.for_table("quotes"))
    assert decide(ledger, quote(9, 10), quote(10, 20)) == [True, True]
    assert decide(ledger, quote(15, 25), quote(12, 18), quote(20, 25)) == [True, False, False]
    assert covered(ledger) == [(9, 25)]
    assert ledger.gaps() == []


def test_holes_between_quotes_are_joined_after_the_longest_spool() -> None:
    ledger = Ledger(LedgerParams.for_table("quotes"))
    decide(ledger, quote(9, 10, 0), quote(19, 20, 10))
    assert decide(ledger, quote(12, 13, 3)) == [True]
    decide(ledger, quote(20, 30, 86_400 + 9))
    assert decide(ledger, quote(14, 15, 5)) == [True]
    decide(ledger, quote(30, 31, 86_400 + 11))
    assert decide(ledger, quote(16, 17, 6)) == [False]
    assert covered(ledger) == [(9, 31)]


def test_ledger_of_a_million_quotes_with_thousands_of_reconnects_stays_small() -> None:
    ledger = Ledger(LedgerParams.for_table("quotes"))
    rng = np.random.default_rng(1)
    per_connection, connections = 400, 2_500
    keys = batch_of([quote(0, 1)] * per_connection)
    last, kept, largest = 0, 0, 0
    for connection in range(connections):
        ids = last + 5 + np.cumsum(rng.integers(1, 20, per_connection))
        starts = np.concatenate(([ids[0] - 1], ids[:-1]))
        last = int(ids[-1])
        times = T0 + connection * 100 * SECOND + np.arange(per_connection) * SECOND // 4
        batch = keys.set_column(3, "source_sequence", pa.array(ids)).set_column(4, "sequence_from", pa.array(starts))
        batch = batch.set_column(5, "timestamp", pa.array(times).cast(keys.schema.field("timestamp").type))
        kept += int(ledger.decide(PARTITION, batch).keep.sum())
        if connection % 500 == 0:
            largest = max(largest, ledger.summary().intervals)
    assert kept == per_connection * connections
    assert largest <= 866  # one every 100 s for 24 h
    assert len(encode_ledger(ledger, {})) < 40_000


def test_seal_ends_the_waiting_but_a_late_row_is_still_new() -> None:
    ledger = Ledger()
    decide(ledger, trade(1), trade(10), trade(20))
    assert ledger.seal(PARTITION, seal(1, 9)) == 8
    assert ledger.seal(PARTITION, seal(1, 9)) == 0
    assert [(gap.first_id, gap.last_id, gap.sealed) for gap in ledger.gaps()] == [(2, 9, True), (11, 19, False)]
    assert decide(ledger, trade(5), trade(5), trade(10)) == [True, False, False]
    assert [(gap.first_id, gap.last_id, gap.sealed) for gap in ledger.gaps()] == [
        (2, 4, True),
        (6, 9, True),
        (11, 19, False),
    ]
    assert ledger.seal(PARTITION, seal(12, 15)) == 3
    assert [(gap.first_id, gap.last_id) for gap in ledger.gaps() if not gap.sealed] == [(11, 12), (16, 19)]
    assert (ledger.summary().sealed_ids, ledger.summary().missing_ids) == (10, 6)
    assert ledger.seal(PARTITION, seal(1, 9, space="#7")) == 0
    assert ledger.seal(PARTITION, seal(1, 9, symbol="NEVER")) == 0


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=8), st.sets(st.integers(1, 60)))
@settings(max_examples=60, deadline=None)
def test_gaps_and_seals_agree_with_a_set(seals: list[tuple[int, int]], ids: set[int]) -> None:
    ledger = Ledger()
    given_up: set[int] = set()
    rows = sorted(ids | {0, 61})
    decide(ledger, *(trade(row_id) for row_id in rows))
    absent = set(range(62)) - set(rows)
    for low, width in seals:
        named = set(range(low + 1, low + width + 1))
        assert ledger.seal(PARTITION, seal(low, low + width)) == len((named & absent) - given_up)
        given_up |= named
    listed = {sealed: set() for sealed in (True, False)}
    for gap in ledger.gaps():
        listed[gap.sealed] |= set(range(gap.first_id, gap.last_id + 1))
    assert listed == {True: absent & given_up, False: absent - given_up}


@given(st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=12), max_size=6))
@settings(max_examples=150, deadline=None)
def test_one_rule_agrees_with_a_set_of_ids(batches: list[list[tuple[int, int]]]) -> None:
    ledger = Ledger(LedgerParams.for_table("quotes"))
    model: set[int] = set()
    for ranges in batches:
        rows = [quote(low, low + width) for low, width in ranges]
        expected = []
        for row in rows:
            expected.append(row.row_id not in model)
            if expected[-1]:
                opening = not model  # the row that opens a space covers itself alone
                model |= set(range(row.row_id if opening else row.start + 1, row.row_id + 1))
        if rows:
            assert decide(ledger, *rows) == expected
    if model:
        assert {row_id for low, high in covered(ledger) for row_id in range(low + 1, high + 1)} == model


def test_poisoned_id_does_not_blow_up_memory_or_end_the_numbering() -> None:
    ledger = Ledger()
    live = [trade(row_id, row_id / 10) for row_id in range(1, 2_000)]
    poisons = [trade(10**12, 50), trade(3, 100), trade(2**62, 120)]
    rows = [*live[:1_000], poisons[0], *live[1_000:1_100], poisons[1], *live[1_100:1_300], poisons[2], *live[1_300:]]
    decision = ledger.decide(PARTITION, batch_of(rows))
    assert decision.keep.all()
    assert decision.space is not None
    assert ledger.summary().strays == 0
    labels = [label for row, label in zip(rows, decision.space.to_pylist(), strict=True) if row not in poisons]
    assert set(labels) == {""}
    assert [event.kind for event in decision.events] == ["space_opened"] * 3
    assert ledger.gaps() == []
    assert not ledger.decide(PARTITION, batch_of(live)).keep.any()


def test_ids_at_the_ends_of_int64_are_rows_like_others() -> None:
    ledger = Ledger()
    ends = [trade(-(2**63) + 2, 1), trade(2**63 - 1, 2), trade(2**62, 3), trade(-(2**62), 4)]
    decision = ledger.decide(PARTITION, batch_of([trade(1), *ends, trade(2), trade(3)]))
    assert decision.keep.all()
    assert not any(decide(ledger, trade(1), *ends, trade(2)))
    assert encode_ledger(decode_ledger(encode_ledger(ledger, {}))[0], {}) == encode_ledger(ledger, {})


def test_rows_that_fit_nowhere_are_kept_and_recognised_while_openings_are_limited() -> None:
    rng = random.Random(3)
    ledger = Ledger()
    garbage = [trade(rng.randint(1, 10**6) * 10**7, 1_000) for _ in range(40)]
    decide(ledger, *(trade(row_id, row_id / 10) for row_id in range(1, 100)))
    decision = ledger.decide(PARTITION, batch_of(garbage))
    assert decision.keep.all()
    assert decision.space is not None
    assert decision.space.to_pylist().count("#0") == 36
    assert len(decision.events) < 12
    assert not any(decide(ledger, *garbage))
    assert decide(ledger, trade(100, 1_100), trade(99, 9.9)) == [True, False]
    assert ledger.summary().strays == 36


def test_too_many_intervals_give_up_the_lowest_hole_and_say_so() -> None:
    ledger = Ledger(LedgerParams(intervals_kept=10))
    decision = ledger.decide(PARTITION, batch_of([trade(row_id) for row_id in range(2, 42, 2)]))
    assert decision.keep.all()
    assert [event.kind for event in decision.events] == ["hole_given_up"] * 10
    assert (ledger.summary().intervals, ledger.summary().given_up_ids) == (10, 10)


def test_file_spaces_know_no_time_and_no_restart() -> None:
    ledger = Ledger()
    rows = [trade(row_id, 1_000 - row_id, base="file:ab12") for row_id in range(1, 50)]
    assert all(decide(ledger, *rows))
    assert not any(decide(ledger, *rows))
    assert ledger.summary().spaces == 1


def test_rows_without_a_sequence_go_by_their_own_id_within_a_window() -> None:
    ledger = Ledger(LedgerParams(recent_kept=3))

    def uuids(*names: str) -> list[bool]:
        rows = batch_of([trade(5 if name == "numbered" else 1) for name in names])
        ids = [5 if name == "numbered" else None for name in names]
        rows = rows.set_column(3, "source_sequence", pa.array(ids, pa.int64()))
        rows = rows.set_column(4, "sequence_from", pa.nulls(len(names), pa.int64()))
        rows = rows.append_column("trade_id", pa.array(names))
        kept: list[bool] = ledger.decide(PARTITION, rows).keep.tolist()
        return kept

    assert uuids("a", "numbered", "b", "a") == [True, True, True, False]
    assert uuids("numbered", "c", "d", "b") == [False, True, True, False]
    assert uuids("a") == [True]  # four ids ago: outside the window
    assert ledger.summary().rows == 6


def test_null_keys_and_times_are_refused_before_anything_changes() -> None:
    ledger = Ledger()
    decide(ledger, trade(1))
    before = encode_ledger(ledger, {})
    batch = batch_of([trade(2), trade(3)])
    for index, name in ((1, "symbol"), (5, "timestamp")):
        broken = batch.set_column(
            index, name, pa.array([batch.column(index)[0].as_py(), None], batch.schema.field(index).type)
        )
        with pytest.raises(BadRecord, match=name):
            ledger.decide(PARTITION, broken)
    assert encode_ledger(ledger, {}) == before


def test_copy_is_independent_in_both_directions() -> None:
    ledger = Ledger()
    decide(ledger, *(trade(row_id) for row_id in range(1, 20)))
    committed = ledger.copy()
    before = encode_ledger(committed, {})
    assert all(decide(ledger, *(trade(row_id) for row_id in range(20, 40)), trade(50), trade(1, symbol="NEW")))
    assert encode_ledger(committed, {}) == before
    assert all(decide(committed, *(trade(row_id) for row_id in range(20, 40)), trade(50), trade(1, symbol="NEW")))
    assert encode_ledger(committed, {}) == encode_ledger(ledger, {})


def test_marks_are_taken_at_the_same_ids_however_many_rows_a_batch_has() -> None:
    ids = np.arange(1, 400_001)
    keys = batch_of([trade(1)] * 100_000)
    files = []
    for size in (100_000, 7_777):
        ledger = Ledger()
        for at in range(0, len(ids), size):
            part = ids[at : at + size]
            batch = keys.slice(0, len(part)).set_column(3, "source_sequence", pa.array(part))
            batch = batch.set_column(4, "sequence_from", pa.array(part - 1))
            times = pa.array(T0 + part * 1_000).cast(keys.schema.field("timestamp").type)
            assert ledger.decide(PARTITION, batch.set_column(5, "timestamp", times)).keep.all()
        marks = ledger.instruments()[0].spaces[0].intervals.marks[0]
        steps = np.diff([mark[0] for mark in marks])
        assert steps.max() <= 16_384  # spread over all ids
        assert 20 <= len(marks) <= 64
        files.append(encode_ledger(ledger, {}))
    assert files[0] == files[1]
