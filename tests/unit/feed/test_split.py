"""A batch goes to its symbols' partitions, in order, in records of bounded size."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from k2ray.exchanges import adapter
from k2ray.exchanges.base import Subscription
from k2ray.feed.split import ROWS_A_RECORD, split_by_partition
from k2ray.log.partition import partition_of
from k2ray.wire.codec import encode_rows

SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT", "XRPUSDT", "DOGEUSDT")


def trades(count: int, symbols: tuple[str, ...] = SYMBOLS, groups: tuple[int, ...] = ()) -> pa.RecordBatch:
    frames = [
        (
            f'{{"stream":"{symbols[number % len(symbols)].lower()}@trade","data":{{"t":{number},"p":"1","q":"1",'
            f'"T":1790000000000,"m":true,"M":true}}}}'
        ).encode()
        for number in range(count)
    ]
    decoder = adapter("binance").decoder(Subscription(("trades",), symbols, groups))
    return decoder.decode(frames, np.full(count, 1, dtype=np.int64)).batches["trades"]


@pytest.mark.parametrize("ordered", [False, True])
def test_each_row_goes_to_its_partition_once_and_in_order(ordered: bool) -> None:
    batch = trades(1_000, groups=tuple(partition_of("binance", symbol, 4) for symbol in SYMBOLS) if ordered else ())
    seen = []
    for partition, rows in split_by_partition(batch, "binance", 4):
        assert {partition_of("binance", symbol, 4) for symbol in rows.column("symbol").to_pylist()} == {partition}
        ids = rows.column("source_sequence").to_pylist()
        assert ids == sorted(ids)
        seen += ids
    assert sorted(seen) == list(range(1_000))


def test_one_partition_is_not_copied() -> None:
    batch = trades(100)
    ((partition, rows),) = split_by_partition(batch, "binance", 1)
    assert partition == 0
    assert rows.equals(batch)


def test_a_record_holds_a_bounded_number_of_rows() -> None:
    sizes = [rows.num_rows for _, rows in split_by_partition(trades(9_000, ("BTCUSDT",)), "binance", 4)]
    assert sizes == [ROWS_A_RECORD, ROWS_A_RECORD, 1_000]


def test_a_part_takes_no_more_bytes_than_a_copy() -> None:
    """Arrow's IPC wrote the offsets of the whole batch's list columns with every slice."""
    batch = trades(2_000, groups=tuple(partition_of("binance", symbol, 4) for symbol in SYMBOLS))
    for _, rows in split_by_partition(batch, "binance", 4):
        copy = rows.take(pa.array(range(rows.num_rows)))
        assert len(encode_rows("trades", rows)[0]) <= len(encode_rows("trades", copy)[0]) + 64
