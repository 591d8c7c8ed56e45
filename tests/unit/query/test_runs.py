"""Folding batches gives the same bars however the rows are cut, ordered and put together on the way."""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ray.model import DECIMAL, TIMESTAMP
from k2ray.query import runs
from k2ray.query.runs import Folding

Row = tuple[str, int, int, Decimal, Decimal]
rows_of_trades = st.lists(
    st.tuples(
        st.sampled_from("ABC"),
        st.integers(-20, 60),
        st.integers(0, 5),
        st.integers(-3, 9).map(Decimal),
        st.sampled_from([Decimal(1), Decimal("0.000000000000000001"), Decimal("2.5")]),
    ),
    min_size=1,
    max_size=40,
)


def batch(rows: list[Row]) -> pa.RecordBatch:
    symbols, times, sequences, prices, quantities = (list(column) for column in zip(*rows, strict=True))
    return pa.record_batch(
        {
            "exchange": pa.array(["x"] * len(rows)),
            "symbol": pa.array(symbols),
            "timestamp": pa.array(times, pa.int64()).cast(TIMESTAMP),
            "sequence": pa.array(sequences, pa.int64()),
            "price": pa.array(prices, DECIMAL),
            "quantity": pa.array(quantities, DECIMAL),
        }
    )


def bars(rows: list[Row], step: int, **options: Any) -> list[tuple[Any, ...]]:
    folding = Folding(10, **{"is_ascending": True, "limit": 1_000, "after": None, **options})
    for start in range(0, len(rows), step):
        folding.add(batch(rows[start : start + step]))
    found = folding.bars()
    names = [symbol for _, symbol in folding.instruments]
    columns = [getattr(found, field.name).tolist() for field in fields(found) if field.name != "code"]
    return list(zip(*columns, [names[code] for code in found.code], strict=True))


@given(rows_of_trades, st.integers(1, 40), st.randoms(use_true_random=False))
def test_bars_do_not_depend_on_batches_or_order(rows: list[Row], step: int, random: Any) -> None:
    shuffled = random.sample(rows, len(rows))
    assert bars(shuffled, step) == bars(sorted(rows), len(rows))


@given(rows_of_trades, st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans())
def test_dropping_what_lies_beyond_the_limit_loses_nothing(
    rows: list[Row], step: int, limit: int, is_ascending: bool, has_cursor: bool
) -> None:
    after = (0, "x", "B") if has_cursor else None
    whole = sorted(bars(rows, len(rows)), key=lambda bar: (bar[0], bar[-1]), reverse=not is_ascending)
    if has_cursor:
        whole = [
            bar for bar in whole if ((bar[0], bar[-1]) > (0, "B")) == is_ascending and (bar[0], bar[-1]) != (0, "B")
        ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "RUNS_KEPT", 1)
        assert bars(rows, step, limit=limit, is_ascending=is_ascending, after=after) == whole[:limit]


def test_no_rows_make_no_bars() -> None:
    folding = Folding(10, is_ascending=True, limit=5, after=None)
    assert len(folding.bars()) == 0
    assert folding.bars().open.dtype == np.dtype(object)
