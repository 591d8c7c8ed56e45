"""Answers as bytes: exact numbers, valid JSON for any text, the same rows in Arrow."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ray.errors import BadRequest
from k2ray.model import DECIMAL, STRING_MAP, TIMESTAMP
from k2ray.query.engine import Answer
from serve import formats
from serve.formats import choose_format, encode_arrow, encode_json

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("number", DECIMAL),
        ("whole", pa.int64()),
        ("flag", pa.bool_()),
        ("moment", TIMESTAMP),
        ("list", pa.list_(pa.string())),
        ("map", STRING_MAP),
    ]
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

text = st.text(st.characters(codec="utf-8"), max_size=20)
rows_strategy = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | text,
            "number": st.none() | st.integers(-(10**38) + 1, 10**38 - 1).map(lambda one: Decimal(f"{one}E-18")),
            "whole": st.none() | st.integers(-(2**63), 2**63 - 1),
            "flag": st.none() | st.booleans(),
            "moment": st.none() | st.integers(0, 4_000_000_000_000_000),
            "list": st.none() | st.lists(text, max_size=3),
            "map": st.none() | st.dictionaries(text, text, max_size=3),
        }
    ),
    max_size=12,
)


def answer(rows: list[dict[str, Any]], cursor: str | None = None, snapshot: int | None = 2**62 + 1) -> Answer:
    return Answer(pa.Table.from_pylist(rows, schema=SCHEMA), cursor, snapshot, 1)


def plain(value: Decimal | None) -> str | None:
    if value is None:
        return None
    written = format(value, "f")
    return written.rstrip("0").rstrip(".") if "." in written else written


@given(rows_strategy)
def test_json_says_exactly_what_the_rows_hold(rows: list[dict[str, Any]]) -> None:
    found = json.loads(b"".join(encode_json(answer(rows))))
    assert len(found["data"]) == len(rows)
    for got, row in zip(found["data"], rows, strict=True):
        assert list(got) == SCHEMA.names
        for name in ("text", "whole", "flag", "list", "map"):
            assert got[name] == row[name], name
        assert got["number"] == (None if row["number"] is None else plain(row["number"]))
        if row["moment"] is not None:
            assert got["moment"].endswith("Z")
            assert len(got["moment"]) == len("2026-01-01T00:00:00.000000Z")
            assert datetime.fromisoformat(got["moment"]) == EPOCH + timedelta(microseconds=row["moment"])


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("0", "0"),
        ("100", "100"),
        ("0.00012345", "0.00012345"),
        ("0.000000000000000001", "0.000000000000000001"),
        ("12345678901.5", "12345678901.5"),
        ("-0.10", "-0.1"),
        ("99999999999999999999.999999999999999999", "99999999999999999999.999999999999999999"),
    ],
)
def test_decimals_are_plain_text_and_never_floats(value: str, written: str) -> None:
    """TRAPS 12: decimals were turned into floats in API answers. 13: price 0.00012345."""
    row = dict.fromkeys(SCHEMA.names) | {"number": Decimal(value)}
    assert f'"number":"{written}"'.encode() in b"".join(encode_json(answer([row])))


@pytest.mark.parametrize("varying", [None, *SCHEMA.names])
def test_values_that_all_rows_share_are_in_every_row(varying: str | None) -> None:
    shared = {
        "text": 'a "quoted" name',
        "number": Decimal("0.5"),
        "whole": 7,
        "flag": True,
        "moment": None,
        "list": None,
        "map": None,
    }
    values = {
        "text": "b",
        "number": Decimal(2),
        "whole": 8,
        "flag": False,
        "moment": 5,
        "list": ["x"],
        "map": {"k": "v"},
    }
    rows = [dict(shared), {**shared, varying: values[varying]} if varying else dict(shared), dict(shared)]
    found = json.loads(b"".join(encode_json(answer(rows))))["data"]
    written = {**shared, "number": "0.5"}
    assert (found[0], found[2]) == (written, written)
    changed = {**values, "number": "2", "moment": "1970-01-01T00:00:00.000005Z"}
    assert found[1] == ({**written, varying: changed[varying]} if varying else written)
    only_text = Answer(answer(rows).rows.select(["text"]).slice(0, 1), None, 1, 1)
    assert json.loads(b"".join(encode_json(only_text)))["data"] == [{"text": shared["text"]}]


def test_an_empty_answer_is_valid_in_both_formats() -> None:
    assert json.loads(b"".join(encode_json(answer([], None, None)))) == {
        "data": [],
        "next_cursor": None,
        "snapshot": None,
    }
    stream = pa.ipc.open_stream(b"".join(encode_arrow(answer([]))))
    assert stream.read_all().num_rows == 0


def test_chunks_join_to_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "ROWS_PER_CHUNK", 3)
    rows = [dict.fromkeys(SCHEMA.names) | {"whole": n, "text": f"a,{n}"} for n in range(10)]
    chunks = list(encode_json(answer(rows, "next")))
    assert len(chunks) > 3
    found = json.loads(b"".join(chunks))
    assert [row["whole"] for row in found["data"]] == list(range(10))
    assert (found["next_cursor"], found["snapshot"]) == ("next", str(2**62 + 1))
    table = pa.ipc.open_stream(b"".join(encode_arrow(answer(rows, "next")))).read_all()
    assert table["whole"].to_pylist() == list(range(10))
    assert table.schema.metadata == {b"next_cursor": b"next", b"snapshot": str(2**62 + 1).encode()}
    assert table.schema.remove_metadata() == SCHEMA


def test_the_parameter_wins_over_the_header() -> None:
    arrow = "application/vnd.apache.arrow.stream"
    assert choose_format(None, None).media_type == "application/json"
    assert choose_format(None, f"text/html, {arrow};q=0.9").media_type == arrow
    assert choose_format("json", arrow).media_type == "application/json"
    with pytest.raises(BadRequest, match="allowed: json, arrow"):
        choose_format("csv", None)
