"""The old connection may go once it has delivered all that came before the new one's first rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.exchanges import adapter
from k2ray.exchanges.base import Subscription
from k2ray.feed.handover import Handover

SYMBOLS = ("BTCUSDT", "ETHUSDT")


def rows(*ids: int, symbol: str = "BTCUSDT") -> pa.RecordBatch:
    frames = [
        (
            f'{{"stream":"{symbol.lower()}@trade","data":{{"t":{number},"p":"1","q":"1",'
            f'"T":1790000000000,"m":true,"M":true}}}}'
        ).encode()
        for number in ids
    ]
    decoder = adapter("binance").decoder(Subscription(("trades",), SYMBOLS))
    return decoder.decode(frames, np.full(len(frames), 1, dtype=np.int64)).batches["trades"]


def test_nothing_is_asked_of_symbols_without_a_row() -> None:
    handover = Handover(1, 2)
    assert handover.caught_up
    handover.note(1, "trades", rows(1, 2, 3))
    assert handover.caught_up


def test_the_old_one_must_reach_where_the_new_one_begins() -> None:
    handover = Handover(1, 2)
    handover.note(1, "trades", rows(7))
    handover.note(2, "trades", rows(11, 12))
    handover.note(2, "trades", rows(13))
    assert not handover.caught_up
    handover.note(1, "trades", rows(8, 9))
    assert not handover.caught_up
    handover.note(1, "trades", rows(10))
    assert handover.caught_up, "the new one has 11 itself"


def test_each_symbol_and_channel_counts_by_itself() -> None:
    handover = Handover(1, 2)
    handover.note(2, "trades", rows(11))
    handover.note(1, "trades", rows(50, symbol="ETHUSDT"))
    handover.note(1, "quotes", rows(50))
    handover.note(3, "trades", rows(50))
    assert not handover.caught_up
    handover.note(1, "trades", rows(12))
    assert handover.caught_up


@settings(max_examples=50, deadline=None)
@given(
    lag=st.integers(0, 30),
    begins=st.integers(10, 40),
    thin=st.integers(0, 60),
    cuts=st.lists(st.integers(1, 5), min_size=60, max_size=60),
)
def test_letting_the_old_one_go_when_caught_up_leaves_no_gap(lag: int, begins: int, thin: int, cuts: list[int]) -> None:
    """Ids 0..99 of one symbol and one id of a thin one; the old connection lags, the new one begins anywhere."""
    handover = Handover(1, 2)
    sent = [("ETHUSDT", 1) if at == thin else ("BTCUSDT", at) for at in range(100)]
    seen: set[tuple[str, int]] = set()
    at = 0
    for size in cuts:
        new = [item for item in sent[at : at + size] if at >= begins]
        old = sent[max(0, at - lag) : max(0, at + size - lag)]
        for connection, part in ((2, new), (1, old)):
            for symbol, number in part:
                handover.note(connection, "trades", rows(number, symbol=symbol))
                seen.add((symbol, number))
        at += size
        if new and handover.caught_up:
            break
    assert set(sent[: max(0, at - lag)]) <= seen
    first = next((number for symbol, number in sent[begins:] if symbol == "BTCUSDT"), None)
    if at > begins and handover.caught_up and first is not None and ("BTCUSDT", first) in seen:
        assert {("BTCUSDT", number) for symbol, number in sent[: max(begins, 0)] if symbol == "BTCUSDT"} <= seen
