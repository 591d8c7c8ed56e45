import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.sim.frames import Encoder, Form, split_frames, text_frame
from k2ray.sim.market import LOOP, Channel, Market
from k2ray.sim.truth import TruthLog

NOW = 1_795_454_110_449_123
FORMS = [Form(combined, micro) for combined in (False, True) for micro in (False, True)]


def expected(row: dict[str, Any], form: Form) -> str:
    """Format one truth row the slow way, key by key as Binance documents it."""
    unit = 1 if form.microseconds else 1000
    symbol = row["symbol"]
    if row["channel"] == "bookTicker":
        text = (
            f'{{"u":{row["id"]},"s":"{symbol}","b":"{row["bid_price"]}","B":"{row["bid_quantity"]}",'
            f'"a":"{row["ask_price"]}","A":"{row["ask_quantity"]}"}}'
        )
    else:
        event, at = row["event_us"] // unit, row["trade_us"] // unit
        maker = json.dumps(row["is_buyer_maker"])
        content = f'"p":"{row["price"]}","q":"{row["quantity"]}"'
        head = f'{{"e":"{row["channel"]}","E":{event},"s":"{symbol}"'
        if row["channel"] == "trade":
            text = f'{head},"t":{row["id"]},{content},"T":{at},"m":{maker},"M":true}}'
        else:
            span = f'"f":{row["first_id"]},"l":{row["last_id"]}'
            text = f'{head},"a":{row["id"]},{content},{span},"T":{at},"m":{maker},"M":true}}'
    if form.combined:
        return f'{{"stream":"{symbol.lower()}@{row["channel"]}","data":{text}}}'
    return text


@settings(max_examples=12, deadline=None)
@given(
    ticks=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    first_id=st.sampled_from([None, 1, 95, 999_990]),
    warm_up=st.sampled_from([0, LOOP - 50]),
    reset=st.booleans(),
)
def test_frames_are_byte_for_byte_what_the_truth_says(
    tmp_path_factory: Any, ticks: list[int], first_id: int | None, warm_up: int, reset: bool
) -> None:
    market = Market(11, ("BTCUSDT", "SHIBUSDT"), first_id=first_id)
    folder: Path = tmp_path_factory.mktemp("truth")
    log, encoder = TruthLog(folder / "truth.parquet", market), Encoder(market)
    market.advance(2 * warm_up, NOW)
    sent: dict[Form, list[str]] = {form: [] for form in FORMS}
    for n, trades in enumerate(ticks):
        if reset and n == len(ticks) - 1:
            market.reset_ids("BTCUSDT")
        for block in market.advance(trades, NOW + n * 1_234_567):
            log.append(block)
            for form in FORMS:
                sent[form] += [payload.decode() for payload in split_frames(encoder.encode(block, form))]
    assert log.finish() == len(sent[FORMS[0]])
    rows = pq.read_table(folder / "truth.parquet").to_pylist()
    for form in FORMS:
        assert sorted(sent[form]) == sorted(expected(row, form) for row in rows)
        assert all(json.loads(text) for text in sent[form])
    assert list(folder.iterdir()) == [folder / "truth.parquet"]


def test_large_blocks_pass_the_loops_end() -> None:
    market = Market(1, ("BTCUSDT",))
    encoder = Encoder(market)
    for block in market.advance(3 * LOOP + 17, NOW):
        payloads = split_frames(encoder.encode(block, Form(True, False)))
        assert len(payloads) == block.count
        if block.channel is Channel.TRADE:
            ids = [json.loads(payload)["data"]["t"] for payload in payloads]
            assert ids == list(range(ids[0], ids[0] + 3 * LOOP + 17))


def test_frame_headers_say_their_length() -> None:
    for size in (0, 125, 126, 65_535, 65_536):
        payload = b"x" * size
        assert split_frames(text_frame(payload) * 2) == [payload, payload]
