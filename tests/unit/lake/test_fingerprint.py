"""The fingerprint of rows: blind to order, chunks and encoding, and to nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ray.lake.fingerprint import Fingerprint, fingerprint
from k2ray.model import TRADES_WIRE, table_schema
from tests.support.lake import trades

NAMES = table_schema("trades").names
ROWS = pa.Table.from_batches([trades(range(60), ["BTCUSDT", "ETHUSDT", "X"] * 20)])


def replaced(rows: pa.Table, name: str, values: list[Any]) -> pa.Table:
    place = rows.schema.get_field_index(name)
    return rows.set_column(place, rows.schema.field(place), pa.array(values, rows.schema.field(place).type))


def test_order_chunks_and_encoding_do_not_count() -> None:
    shuffled = ROWS.take(pa.array(np.random.default_rng(1).permutation(60)))
    halves = pa.concat_tables([ROWS.slice(31), ROWS.slice(0, 31)])
    plain = ROWS.cast(
        pa.schema([f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in TRADES_WIRE])
    )
    assert fingerprint(ROWS, NAMES) == fingerprint(shuffled, NAMES) == fingerprint(halves, NAMES)
    assert fingerprint(plain, NAMES) == fingerprint(ROWS, NAMES)
    assert fingerprint(ROWS.slice(0, 20), NAMES) + fingerprint(ROWS.slice(20), NAMES) == fingerprint(ROWS, NAMES)
    assert fingerprint(ROWS.slice(0, 0), NAMES) == Fingerprint()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"trade_conditions", "vendor_data"}])
def test_every_column_counts(name: str) -> None:
    values = ROWS[name].to_pylist()
    other = {str: "other", int: 77}.get(type(values[0]), values[-1])
    assert fingerprint(replaced(ROWS, name, [other, *values[1:]]), NAMES) != fingerprint(ROWS, NAMES)


@pytest.mark.parametrize(
    ("name", "some", "others"),
    [
        ("trade_conditions", [["a", "b"], None, []], [["ab"], None, []]),
        ("trade_conditions", [["a", "b"], None, []], [["b", "a"], None, []]),
        ("trade_conditions", [["a"], None, []], [["a"], [], None]),
        ("vendor_data", [[("k", "v")], None, []], [[("k", "w")], None, []]),
        ("vendor_data", [[("k", "v"), ("l", "w")], None, []], [[("k", "w"), ("l", "v")], None, []]),
    ],
)
def test_what_lists_and_maps_hold_counts(name: str, some: list[Any], others: list[Any]) -> None:
    rows = ROWS.slice(0, 3)
    first, second = replaced(rows, name, some), replaced(rows, name, others)
    assert fingerprint(first, NAMES) != fingerprint(second, NAMES)
    assert fingerprint(first.slice(1), NAMES) + fingerprint(first.slice(0, 1), NAMES) == fingerprint(first, NAMES)


def test_values_that_change_places_between_rows_are_noticed() -> None:
    prices = ROWS["price"].to_pylist()
    swapped = replaced(ROWS, "price", [prices[1], prices[0], *prices[2:]])
    assert fingerprint(swapped, NAMES) != fingerprint(ROWS, NAMES)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.lists(st.integers(0, 30), min_size=1, max_size=30))
def test_equal_means_the_same_rows(some: list[int], others: list[int]) -> None:
    same = sorted(some) == sorted(others)
    first, second = (fingerprint(pa.Table.from_batches([trades(ids)]), NAMES) for ids in (some, others))
    assert (first == second) == same
