"""A batch to batches of one partition each, by its symbols' codes; order within a partition stays."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2ray.log.partition import partition_of

ROWS_A_RECORD = 4_000
"""Some 0.5 MB before compression."""

_SYMBOL = 1  # its place in every wire schema


@functools.lru_cache(maxsize=256)
def _partitions(exchange: str, symbols: tuple[str, ...], partitions: int) -> npt.NDArray[np.int32]:
    return np.array([partition_of(exchange, symbol, partitions) for symbol in symbols], dtype=np.int32)


def split_by_partition(batch: pa.RecordBatch, exchange: str, partitions: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (partition, rows) for Kafka records of at most `ROWS_A_RECORD` rows.

    Args:
        batch: Rows of one exchange in a wire schema.
        exchange: Its `exchange` column's only value.
        partitions: The topic's number of partitions.
    """
    symbols = batch.column(_SYMBOL)
    codes = symbols.indices.to_numpy()
    of_code = _partitions(exchange, tuple(symbols.dictionary.to_pylist()), partitions)
    of_row = of_code[codes]
    for partition in np.unique(of_code).tolist():
        held = of_row == partition
        count = int(np.count_nonzero(held))
        if count == 0:
            continue
        rows = batch if count == batch.num_rows else batch.take(pa.array(np.flatnonzero(held)))
        for at in range(0, count, ROWS_A_RECORD):
            yield partition, rows.slice(at, ROWS_A_RECORD)
