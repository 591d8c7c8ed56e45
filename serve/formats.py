"""Answers as bytes: JSON with exact numbers as text, or an Arrow IPC stream, a chunk of rows at a time.

JSON: `{"data": [...], "next_cursor": ..., "snapshot": ...}`. Decimals are strings without trailing zeros, times are
ISO-8601 with microseconds and Z, whole numbers are numbers, snapshot ids are strings (they do not fit a double).
Arrow: the same columns with their types; cursor and snapshot are in the schema's metadata. Both repeat them in headers.

Rows become text column by column, in Arrow: values that all rows share are literal text, written once for all columns
between two that differ, and a row never is a Python object unless it has lists or maps.
Places are left for csv, parquet and ndjson: an entry in `FORMATS` each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2ray.errors import BadRequest
from k2ray.query.engine import Answer

ROWS_PER_CHUNK = 16_384
CURSOR_HEADER = "X-K2ray-Next-Cursor"
SNAPSHOT_HEADER = "X-K2ray-Snapshot"

# What JSON may not hold as it is; everything else passes as UTF-8.
_MUST_ESCAPE = np.zeros(256, dtype=np.bool_)
_MUST_ESCAPE[[*range(32), ord('"'), ord("\\")]] = True


@dataclass(frozen=True)
class Format:
    """A way to write an answer.

    Attributes:
        media_type: For the Content-Type header.
        encode: Answer -> chunks of bytes; the first one comes with the first rows.
    """

    media_type: str
    encode: Callable[[Answer], Iterator[bytes]]


def encode_json(answer: Answer) -> Iterator[bytes]:
    """Write an answer as one JSON object."""
    yield b'{"data":['
    separator = b""
    for chunk in _chunks(answer.rows):
        yield separator + _json_rows(chunk)
        separator = b","
    snapshot = None if answer.snapshot_id is None else str(answer.snapshot_id)
    cursor = msgspec.json.encode(answer.next_cursor)
    yield b'],"next_cursor":' + cursor + b',"snapshot":' + msgspec.json.encode(snapshot) + b"}"


def encode_arrow(answer: Answer) -> Iterator[bytes]:
    """Write an answer as an Arrow IPC stream; metadata `next_cursor` and `snapshot` where there are any."""
    facts = {}
    if answer.next_cursor is not None:
        facts["next_cursor"] = answer.next_cursor
    if answer.snapshot_id is not None:
        facts["snapshot"] = str(answer.snapshot_id)
    schema = answer.rows.schema.with_metadata(facts)
    sink = _Sink()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), schema) as writer:
        for chunk in _chunks(answer.rows):
            writer.write_table(chunk)
            yield sink.taken()
    yield sink.taken()


FORMATS = {
    "json": Format("application/json", encode_json),
    "arrow": Format("application/vnd.apache.arrow.stream", encode_arrow),
}


def choose_format(name: str | None, accept: str | None) -> Format:
    """Return the format that `format=` names, else the first known one in the Accept header, else JSON.

    Raises:
        BadRequest: `format=` names none that is known.
    """
    if name is not None:
        if name not in FORMATS:
            raise BadRequest("format", f"{name!r} is not a format; allowed: {', '.join(FORMATS)}")
        return FORMATS[name]
    for part in (accept or "").split(","):
        media_type = part.split(";")[0].strip()
        for known in FORMATS.values():
            if media_type == known.media_type:
                return known
    return FORMATS["json"]


def headers(answer: Answer) -> dict[str, str]:
    """Return the headers that every format has."""
    found = {}
    if answer.next_cursor is not None:
        found[CURSOR_HEADER] = answer.next_cursor
    if answer.snapshot_id is not None:
        found[SNAPSHOT_HEADER] = str(answer.snapshot_id)
    return found


def _chunks(rows: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, ROWS_PER_CHUNK):
        yield rows.slice(start, ROWS_PER_CHUNK)


def _json_rows(rows: pa.Table) -> bytes:
    """Return `{...},{...}` of at least one row."""
    pieces: list[pa.Array | pa.Scalar] = []
    literal = "{"  # what every row says up to the next value that differs
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        before, values, after = _json_column(column.combine_chunks())
        literal += f"{msgspec.json.encode(name).decode()}:{before}"
        if values is not None:
            pieces += [_text(literal), values]
            literal = ""
        literal += f"{after},"
    closing = f"{literal[:-1]}}},"
    if not pieces:
        return (closing * len(rows))[:-1].encode()
    pieces.append(_text(closing))
    lines = pc.binary_join_element_wise(*pieces, _text(""))
    # The lines lie one after the other in one buffer: it is the answer as it is, but for the last comma.
    offsets, data = lines.buffers()[1:]
    places = memoryview(offsets).cast("q")
    first, last = places[lines.offset], places[lines.offset + len(lines)]
    return bytes(memoryview(data)[first : last - 1])


def _json_column(column: pa.Array) -> tuple[str, pa.Array | None, str]:
    """Return each value's JSON text: what is before it in all rows, what differs (None if nothing), what is after."""
    kind = column.type
    if column.null_count == len(column):
        return "null", None, ""
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "", _or_null(column.cast(pa.large_string())), ""
    if pa.types.is_decimal(kind):
        return _quoted(_decimals(column))
    if pa.types.is_timestamp(kind):
        return _quoted(_times(column), "Z")
    if pa.types.is_string(kind):
        return _strings(column)
    plain = _maps(column) if pa.types.is_map(kind) else column.to_pylist()
    return "", pa.array([msgspec.json.encode(value).decode() for value in plain], pa.large_string()), ""


def _strings(column: pa.Array) -> tuple[str, pa.Array | None, str]:
    if not column.null_count and pc.all(pc.equal(column, column[0])).as_py():
        return msgspec.json.encode(column[0].as_py()).decode(), None, ""
    large = column.cast(pa.large_string())
    offsets, data = large.buffers()[1:]
    places = memoryview(offsets).cast("q")
    used = np.frombuffer(data or b"", np.uint8)[places[large.offset] : places[large.offset + len(large)]]
    if _MUST_ESCAPE[used].any():
        known = large.dictionary_encode()
        escaped = [msgspec.json.encode(value).decode() for value in known.dictionary.to_pylist()]
        return "", _or_null(pa.array(escaped, pa.large_string()).take(known.indices)), ""
    return _quoted(large)


def _times(column: pa.Array) -> pa.Array:
    """Return times without their zone, which is UTC: asking a zone's rules for each would take ten times as long."""
    text = column.view(pa.timestamp(column.type.unit)).cast(pa.large_string())
    # Arrow writes 2026-01-01 00:00:00.000000.
    return pc.binary_replace_slice(text, 10, 11, "T")


def _decimals(column: pa.Array) -> pa.Array:
    """Return decimals in plain notation, without trailing zeros."""
    text = column.cast(pa.large_string())
    # Arrow writes numbers below 1e-6, zero among them, with an exponent.
    if pc.any(pc.match_substring(text, "E")).as_py():
        known = text.dictionary_encode()
        plain = [format(Decimal(value), "f") for value in known.dictionary.to_pylist()]
        text = pa.array(plain, pa.large_string()).take(known.indices)
    if column.type.scale > 0:
        text = pc.ascii_rtrim(pc.ascii_rtrim(text, "0"), ".")
    return text


def _quoted(text: pa.Array, end: str = "") -> tuple[str, pa.Array, str]:
    if not text.null_count:
        return '"', text, f'{end}"'
    return "", _or_null(pc.binary_join_element_wise(_text('"'), text, _text(f'{end}"'), _text(""))), ""


def _or_null(text: pa.Array) -> pa.Array:
    return pc.fill_null(text, "null") if text.null_count else text


def _maps(column: pa.Array) -> list[dict[str, str] | None]:
    """Return dictionaries; Arrow has lists of pairs."""
    return [None if pairs is None else dict(pairs) for pairs in column.to_pylist()]


def _text(value: str) -> pa.Scalar:
    return pa.scalar(value, pa.large_string())


class _Sink:
    """A file that is emptied after every batch."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        return

    def taken(self) -> bytes:
        joined = b"".join(self._parts)
        self._parts.clear()
        return joined
