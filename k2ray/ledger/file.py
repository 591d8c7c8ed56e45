"""The ledger as one Arrow IPC file (zstd), `k2ray-ledger-<uuid>.arrow`; it round-trips exactly.

One row a space, sorted by exchange, symbol, base, number. The row `number` 0 holds what an instrument remembers outside
its spaces. Lists of intervals are parallel; interval i covers (interval_lo[i], interval_hi[i]].

| column | type | meaning |
|---|---|---|
| exchange, symbol | string | the instrument |
| base | string | base of `sequence_space`, as on the wire |
| topic, partition | string, int32 | where its rows come from |
| number | int32 | the space is `base` for 1, else `base#number`; 0: strays and recent ids |
| hot | bool | the space that took the newest row (number 0: false) |
| floor_us, ceiling_us | int64, null: none | event times of its rows lie between |
| opened_us, opened_id | int64 | the row that opened it |
| newest_us | int64 | newest event time of its rows |
| rows | int64 | rows it took; number 0: strays so far |
| given_up | int64 | ids of holes given up; number 0: rows without a sequence so far |
| interval_lo, interval_hi | list<int64> | covered ids |
| first_id, first_us, last_us | list<int64> | first row, and event time of the last row (its id is interval_hi) |
| mark_count, mark_shift | list<int32> | marks of each interval; its rows that pass a multiple of 2**shift are marks |
| mark_id, mark_us | list<int64> | marks (id, event time) of all intervals, one after the other; number 0: strays |
| sealed_from, sealed_to | list<int64> | ranges (from, to] that are lost for good |
| recent | list<string> | number 0: trade_id or quote_id of the newest rows without a sequence |

Schema metadata: `k2ray.ledger.version`, `k2ray.ledger.params` (JSON of `LedgerParams`), `k2ray.ledger.positions` (JSON:
topic -> {"id": topic id, "offsets": {partition: next offset}}): a ledger whose offsets are not the committed ones is
refused by its reader.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import pyarrow as pa

from k2ray.errors import OperatorNeeded
from k2ray.ledger.ledger import Ledger, PartitionKey
from k2ray.ledger.params import LedgerParams
from k2ray.ledger.spaces import FOREVER, STRAY, Instrument, Space

VERSION = 1
VERSION_KEY = b"k2ray.ledger.version"
PARAMS_KEY = b"k2ray.ledger.params"
POSITIONS_KEY = b"k2ray.ledger.positions"

_IDS = pa.list_(pa.int64())
SCHEMA = pa.schema(
    [
        ("exchange", pa.string()),
        ("symbol", pa.string()),
        ("base", pa.string()),
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("number", pa.int32()),
        ("hot", pa.bool_()),
        ("floor_us", pa.int64()),
        ("ceiling_us", pa.int64()),
        ("opened_us", pa.int64()),
        ("opened_id", pa.int64()),
        ("newest_us", pa.int64()),
        ("rows", pa.int64()),
        ("given_up", pa.int64()),
        ("interval_lo", _IDS),
        ("interval_hi", _IDS),
        ("first_id", _IDS),
        ("first_us", _IDS),
        ("last_us", _IDS),
        ("mark_count", pa.list_(pa.int32())),
        ("mark_shift", pa.list_(pa.int32())),
        ("mark_id", _IDS),
        ("mark_us", _IDS),
        ("sealed_from", _IDS),
        ("sealed_to", _IDS),
        ("recent", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class LedgerPosition:
    """Up to where of a partition the ledger has decided.

    Attributes:
        topic_id: The topic's id, which changes when it is created anew.
        offset: The next offset to read.
    """

    topic_id: str
    offset: int


def encode_ledger(ledger: Ledger, positions: Mapping[PartitionKey, LedgerPosition]) -> bytes:
    """Return the ledger's file.

    Args:
        ledger: Not changed.
        positions: Of every partition that it has decided.
    """
    rows: list[dict[str, Any]] = []
    for instrument in ledger.instruments():
        rows.extend(_rows_of(instrument))
    columns = [pa.array([row[name] for row in rows], type=SCHEMA.field(name).type) for name in SCHEMA.names]
    topics: dict[str, Any] = {}
    for (topic, partition), position in sorted(positions.items()):
        entry = topics.setdefault(topic, {"id": position.topic_id, "offsets": {}})
        entry["offsets"][str(partition)] = position.offset
    schema = SCHEMA.with_metadata(
        {
            VERSION_KEY: str(VERSION),
            PARAMS_KEY: json.dumps(asdict(ledger.params)),
            POSITIONS_KEY: json.dumps(topics),
        }
    )
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    return sink.getvalue()


def decode_ledger(data: bytes) -> tuple[Ledger, dict[PartitionKey, LedgerPosition]]:
    """Read what `encode_ledger` wrote; the ledger continues as if it had never stopped.

    Raises:
        OperatorNeeded: Not a ledger file, or one of a version or with parameters that this program does not know.
    """
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as reader:
            metadata = reader.schema.metadata or {}
            table = reader.read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise OperatorNeeded(f"the ledger file cannot be read: {error}") from error
    version = metadata.get(VERSION_KEY, b"").decode()
    if version != str(VERSION):
        raise OperatorNeeded(f"the ledger file is of version {version or 'none'}, this program knows {VERSION}")
    stored = json.loads(metadata[PARAMS_KEY])
    known = {item.name for item in fields(LedgerParams)}
    if set(stored) != known:
        strange = ", ".join(sorted(set(stored) ^ known))
        raise OperatorNeeded(f"the ledger file's parameters are not the ones this program knows: {strange}")
    instruments: dict[tuple[str, str, str], Instrument] = {}
    for row in table.to_pylist():
        key = (row["exchange"], row["symbol"], row["base"])
        instrument = instruments.get(key)
        if instrument is None:
            instrument = instruments[key] = Instrument(*key, (row["topic"], row["partition"]))
        _read_row(instrument, row)
    positions = {
        (topic, int(partition)): LedgerPosition(entry["id"], offset)
        for topic, entry in json.loads(metadata[POSITIONS_KEY]).items()
        for partition, offset in entry["offsets"].items()
    }
    return Ledger.restore(LedgerParams(**stored), list(instruments.values())), positions


def _rows_of(instrument: Instrument) -> list[dict[str, Any]]:
    head = {
        "exchange": instrument.exchange,
        "symbol": instrument.symbol,
        "base": instrument.base,
        "topic": instrument.partition[0],
        "partition": instrument.partition[1],
    }
    rows = []
    if instrument.stray_rows or instrument.recent_rows:
        empty: dict[str, Any] = dict.fromkeys(SCHEMA.names)
        outside = {
            "number": STRAY,
            "hot": False,
            "rows": instrument.stray_rows,
            "given_up": instrument.recent_rows,
            "mark_id": [row_id for row_id, times in instrument.strays.items() for _ in times],
            "mark_us": [time_us for times in instrument.strays.values() for time_us in times],
            "recent": list(instrument.recent),
        }
        rows.append(empty | head | outside)
    for index, space in enumerate(instrument.spaces):
        intervals = space.intervals
        marks = [mark for of_interval in intervals.marks for mark in of_interval]
        rows.append(
            head
            | {
                "number": space.number,
                "hot": index == instrument.hot,
                "floor_us": None if space.floor_us == -FOREVER else space.floor_us,
                "ceiling_us": None if space.ceiling_us == FOREVER else space.ceiling_us,
                "opened_us": space.opened_us,
                "opened_id": space.opened_id,
                "newest_us": space.newest_us,
                "rows": space.rows,
                "given_up": space.given_up,
                "interval_lo": intervals.lo,
                "interval_hi": intervals.hi,
                "first_id": intervals.first_id,
                "first_us": intervals.first_us,
                "last_us": intervals.last_us,
                "mark_count": [len(of_interval) for of_interval in intervals.marks],
                "mark_shift": intervals.shift,
                "mark_id": [mark[0] for mark in marks],
                "mark_us": [mark[1] for mark in marks],
                "sealed_from": [low for low, _ in space.sealed],
                "sealed_to": [high for _, high in space.sealed],
                "recent": None,
            }
        )
    return rows


def _read_row(instrument: Instrument, row: dict[str, Any]) -> None:
    if row["number"] == STRAY:
        instrument.stray_rows, instrument.recent_rows = row["rows"], row["given_up"]
        for row_id, time_us in zip(row["mark_id"], row["mark_us"], strict=True):
            instrument.strays[row_id] = (*instrument.strays.get(row_id, ()), time_us)
        instrument.recent = dict.fromkeys(row["recent"])
        return
    space = Space(row["number"], row["opened_id"], row["opened_us"])
    space.floor_us = -FOREVER if row["floor_us"] is None else row["floor_us"]
    space.ceiling_us = FOREVER if row["ceiling_us"] is None else row["ceiling_us"]
    space.newest_us, space.rows, space.given_up = row["newest_us"], row["rows"], row["given_up"]
    intervals = space.intervals
    intervals.lo, intervals.hi = row["interval_lo"], row["interval_hi"]
    intervals.first_id, intervals.first_us, intervals.last_us = row["first_id"], row["first_us"], row["last_us"]
    intervals.shift = row["mark_shift"]
    marks = list(zip(row["mark_id"], row["mark_us"], strict=True))
    bounds = [0]
    for count in row["mark_count"]:
        bounds.append(bounds[-1] + count)
    intervals.marks = [marks[low:high] for low, high in pairwise(bounds)]
    space.sealed = list(zip(row["sealed_from"], row["sealed_to"], strict=True))
    if row["hot"]:
        instrument.hot = len(instrument.spaces)
    instrument.spaces.append(space)
