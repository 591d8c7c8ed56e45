"""REST answers become the rows that the same trades are as frames."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from k2ray.errors import BadFrame, SettingsError
from k2ray.exchanges import adapter, rest_adapter
from k2ray.exchanges.base import Instrument, Subscription
from k2ray.model import TRADES_WIRE

SYMBOL = "BTCFDUSD"
AT_US = 1_700_000_000_123_456


def live(channel: str, *frames: dict[str, Any]) -> list[dict[str, Any]]:
    decoder = adapter("binance").decoder(Subscription((channel,), (SYMBOL,)))
    decoder.learn({SYMBOL: Instrument(SYMBOL, "FDUSD")})
    texts = [msgspec.json.encode(frame) for frame in frames]
    rows: list[dict[str, Any]] = decoder.decode(texts, np.full(len(texts), AT_US + 9)).batches[channel].to_pylist()
    return rows


def fetched(channel: str, *rows: dict[str, Any]) -> Any:
    rest = rest_adapter("binance")
    rest.learn({SYMBOL: Instrument(SYMBOL, "FDUSD")})
    return rest.read_page(channel, SYMBOL, msgspec.json.encode(list(rows)), AT_US + 9)


def trade(trade_id: int, price: str = "0.00012345") -> dict[str, Any]:
    facts = {"quoteQty": "1", "time": AT_US, "isBuyerMaker": False, "isBestMatch": False}
    return {"id": trade_id, "price": price, "qty": "12345678901.5", **facts}


def aggregate(a: int, first: int = 5, last: int = 7) -> dict[str, Any]:
    return {"a": a, "p": "67000.1", "q": "0.3", "f": first, "l": last, "T": AT_US, "m": True, "M": True}


def test_a_fetched_trade_is_the_live_one_but_for_its_origin() -> None:
    frame = {"e": "trade", "E": AT_US + 5, "s": SYMBOL, "t": 77, "p": "0.00012345", "q": "12345678901.5"}
    (row,) = live("trades", {**frame, "T": AT_US, "m": False, "M": False})
    page = fetched("trades", trade(77))
    assert page.rows.schema.equals(TRADES_WIRE)
    assert page.rows.to_pylist() == [{**row, "origin": "backfill"}]
    assert (page.void, page.dead) == ([], [])


def test_a_fetched_aggregate_lacks_only_what_rest_does_not_say() -> None:
    """REST has no E: the time at which the exchange sent the event."""
    frame = {"e": "aggTrade", "E": AT_US, "s": SYMBOL, "a": 9, "p": "67000.1", "q": "0.3", "f": 5, "l": 7}
    (row,) = live("agg_trades", {**frame, "T": AT_US, "m": True, "M": True})
    assert fetched("agg_trades", aggregate(9)).rows.to_pylist() == [{**row, "origin": "backfill"}]


def test_void_aggregates_are_no_rows_and_the_next_row_covers_them() -> None:
    void = {**aggregate(9, -1, -1), "p": "0", "q": "0"}
    page = fetched("agg_trades", aggregate(8), void, aggregate(10), {**void, "a": 11})
    assert [(row["sequence_from"], row["source_sequence"]) for row in page.rows.to_pylist()] == [(7, 8), (8, 10)]
    assert page.void == [9, 11]


def test_a_value_that_does_not_fit_is_dead_alone() -> None:
    page = fetched("trades", trade(1), trade(2, "1" * 40), trade(3))
    assert [row["source_sequence"] for row in page.rows.to_pylist()] == [1, 3]
    ((dead_id, frame),) = page.dead
    assert dead_id == 2
    assert b"1" * 40 in frame.raw


@pytest.mark.parametrize("body", [b"", b"{}", b'{"code":-1121,"msg":"Invalid symbol."}', b'[{"id":1}]', b"[1", b"\xff"])
@pytest.mark.parametrize("channel", ["trades", "agg_trades"])
def test_an_answer_that_is_not_the_documented_one_is_refused_whole(channel: str, body: bytes) -> None:
    rest = rest_adapter("binance")
    with pytest.raises(BadFrame):
        rest.read_page(channel, SYMBOL, body, 1)
    (question,) = rest.newest(channel, [SYMBOL])
    with pytest.raises(BadFrame):
        rest.read_newest(channel, question, body)


def test_an_empty_answer_is_an_answer() -> None:
    assert fetched("trades").rows is None


def test_questions_say_what_they_cost() -> None:
    rest = rest_adapter("binance")
    page = rest.page("trades", "A&B", 12, 5_000)
    assert page.path == "/api/v3/historicalTrades?symbol=A%26B&fromId=12&limit=1000"
    assert (page.weight, page.headers) == (25, {"X-MBX-TIME-UNIT": "MICROSECOND"})
    assert rest.page("agg_trades", "AB", 12, 3).weight == 4
    assert rest.page("agg_trades", "AB", 12, 3).path.endswith("limit=3")
    assert [question.weight for question in rest.newest("trades", [f"S{n}" for n in range(45)])] == [2, 2, 2]
    assert [question.weight for question in rest.newest("agg_trades", ["A", "B"])] == [4, 4]


def test_newest_ids_are_read_and_a_symbol_without_trades_is_left_out() -> None:
    rest = rest_adapter("binance")
    (question,) = rest.newest("trades", ["A", "B"])
    body = msgspec.json.encode([{"symbol": "A", "lastId": 7, "count": 1}, {"symbol": "B", "lastId": -1}])
    assert rest.read_newest("trades", question, body) == {"A": 7}
    (question,) = rest.newest("agg_trades", ["A"])
    assert rest.read_newest("agg_trades", question, msgspec.json.encode([aggregate(9)])) == {"A": 9}
    assert rest.read_newest("agg_trades", question, b"[]") == {}


def test_an_exchange_without_rest_adapter_is_named() -> None:
    with pytest.raises(SettingsError, match="mtgox"):
        rest_adapter("mtgox")
