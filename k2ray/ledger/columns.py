"""From Arrow batches to the numbers that the ledger judges: slot of the instrument, ids, event times.

An instrument's slot is found through its dictionary codes: the mapping of a dictionary's content is kept, since batches
of one producer repeat their dictionaries. A table's chunks may differ in dictionaries; each is mapped by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2ray.errors import BadRecord
from k2ray.model import SEQUENCE_FROM

Int64s = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int32]
Key = tuple[str, str, str]

KEYS = ("exchange", "symbol", "sequence_space")
NUMBERS = ("source_sequence", "timestamp", SEQUENCE_FROM)
MAPPINGS_KEPT = 256
LOWEST = -(1 << 63) + 1
"""The lowest id, so that the range of a poisoned row can start below it."""


@dataclass(frozen=True)
class Columns:
    """A batch's rows, in its order.

    Attributes:
        slot: The instrument of each row.
        start: Each row covers the ids (start, row_id].
        row_id: The rows' own ids.
        time_us: Event times in UTC microseconds.
        nameless: Rows with a sequence are False; None where all have one.
    """

    slot: Slots
    start: Int64s
    row_id: Int64s
    time_us: Int64s
    nameless: npt.NDArray[np.bool_] | None


class SlotReader:
    """Maps the key columns of batches to slots.

    Args:
        slot_of: Returns the slot of (exchange, symbol, base space), a new one for a new instrument.
    """

    def __init__(self, slot_of: Callable[[Key], int]) -> None:
        self._slot_of = slot_of
        self._mappings: dict[Any, tuple[Slots, list[list[str]]]] = {}

    def read(self, rows: pa.RecordBatch | pa.Table, widest: int) -> Columns:
        """Return the columns that decisions depend on.

        Args:
            rows: Of a wire schema.
            widest: A row that says it covers more ids than this covers itself alone.

        Raises:
            BadRecord: A key or a time is null.
        """
        if isinstance(rows, pa.Table):
            parts = [self._slots(part) for part in rows.select(KEYS).to_batches()]
            slot = parts[0] if len(parts) == 1 else np.concatenate(parts)
        else:
            slot = self._slots(rows)
        ids, times, starts = (rows.column(name) for name in NUMBERS)
        if times.null_count:
            raise BadRecord("timestamp: holds nulls")
        nameless = None
        if ids.null_count:
            nameless = (
                ids.is_null().to_numpy(zero_copy_only=False)
                if isinstance(ids, pa.Array)
                else (ids.is_null().to_numpy())
            )
            ids = pc.fill_null(ids, 0)
        row_id = np.maximum(_int64(ids), LOWEST)
        if starts.null_count == len(starts):
            start = row_id - 1
        else:
            if starts.null_count:
                starts = pc.if_else(starts.is_null(), pa.array(row_id - 1), starts)
            start = _int64(starts)
            width = row_id - start
            wrong = (width < 1) | (width > widest)
            if wrong.any():
                start = np.where(wrong, row_id - 1, start)
        return Columns(slot, start, row_id, _time_us(times), nameless)

    def _slots(self, rows: pa.RecordBatch) -> Slots:
        columns = [rows.column(name) for name in KEYS]
        columns = [
            column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode() for column in columns
        ]
        for name, column in zip(KEYS, columns, strict=True):
            if column.null_count:
                raise BadRecord(f"{name}: holds nulls")
        key = tuple(_content(column.dictionary) for column in columns)
        known = self._mappings.get(key)
        if known is None:
            values = [column.dictionary.to_pylist() for column in columns]
            size = len(values[0]) * len(values[1]) * len(values[2])
            if len(self._mappings) >= MAPPINGS_KEPT:
                self._mappings.clear()
            known = self._mappings[key] = (np.full(size, -1, dtype=np.int32), values)
        mapping, (exchanges, symbols, spaces) = known
        flat = columns[1].indices.to_numpy(zero_copy_only=False)
        if len(exchanges) > 1:
            flat = columns[0].indices.to_numpy(zero_copy_only=False).astype(np.int64) * len(symbols) + flat
        if len(spaces) > 1:
            flat = flat.astype(np.int64) * len(spaces) + columns[2].indices.to_numpy(zero_copy_only=False)
        slots: Slots = mapping[flat]
        if len(slots) and slots.min() < 0:
            for code in np.unique(flat[slots < 0]).tolist():
                rest, space = divmod(code, len(spaces))
                exchange, symbol = divmod(rest, len(symbols))
                mapping[code] = self._slot_of((exchanges[exchange], symbols[symbol], spaces[space]))
            slots = mapping[flat]
        return slots


def _content(dictionary: pa.Array) -> tuple[Any, ...]:
    _, offsets, data = dictionary.buffers()
    return (
        len(dictionary),
        dictionary.offset,
        offsets.to_pybytes() if offsets is not None else b"",
        data.to_pybytes() if data is not None else b"",
    )


def _int64(column: pa.Array | pa.ChunkedArray) -> Int64s:
    if isinstance(column, pa.ChunkedArray):
        numbers: Int64s = column.to_numpy()
    else:
        numbers = column.to_numpy(zero_copy_only=False)
    return numbers


def _time_us(column: pa.Array | pa.ChunkedArray) -> Int64s:
    if column.type.unit != "us":
        column = column.cast(pa.timestamp("us", column.type.tz))
    return _int64(column).view(np.int64)
