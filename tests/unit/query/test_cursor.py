"""A cursor says where the next page begins, or that it is not genuine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ray.errors import BadRequest
from k2ray.query.cursor import Cursor, decode_cursor, encode_cursor

KEY = "9ad2ac3a-7c1e-4a8e-9d1b-2f9f6d7a6d11"
DIGEST = b"12345678"
INT64 = st.integers(-(2**63), 2**63 - 1)


@given(INT64, st.lists(st.one_of(INT64, st.text(max_size=30)), max_size=8))
def test_round_trip(snapshot_id: int, position: list[int | str]) -> None:
    cursor = Cursor(snapshot_id, tuple(position))
    token = encode_cursor(cursor, DIGEST, KEY)
    assert decode_cursor(token, DIGEST, KEY) == cursor
    assert token.replace("-", "").replace("_", "").isalnum()


@given(st.data())
def test_a_tampered_cursor_is_refused(data: st.DataObject) -> None:
    token = encode_cursor(Cursor(7, (1_767_225_600_000_000, "binance", "BTCUSDT", "", 12, "12")), DIGEST, KEY)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
    changed = token[:place] + other + token[place + 1 :]
    if changed == token:
        return
    with pytest.raises(BadRequest) as caught:
        decode_cursor(changed, DIGEST, KEY)
    assert (caught.value.field, caught.value.status) == ("cursor", 400)


@given(st.text(max_size=60))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        decode_cursor(text, DIGEST, KEY)


def test_a_cursor_belongs_to_one_question_and_one_table() -> None:
    token = encode_cursor(Cursor(7, (1,)), DIGEST, KEY)
    with pytest.raises(BadRequest, match="another question"):
        decode_cursor(token, b"87654321", KEY)
    with pytest.raises(BadRequest, match="another table"):
        decode_cursor(token, DIGEST, "another-uuid")
