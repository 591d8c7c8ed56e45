"""Binance frames to rows: exact values, what rows cover, and that one bad frame or value is dead alone."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from k2ray import model
from k2ray.exchanges import adapter
from k2ray.exchanges.base import SHUTDOWN, Decoded, Instrument, Subscription

NOW_US = 1_790_000_000_500_000
SYMBOLS = ("BTCUSDT", "BTCFDUSD", "ETHDAI")
ALL = ("trades", "agg_trades", "quotes")


def decoder(channels: tuple[str, ...] = ALL, symbols: tuple[str, ...] = SYMBOLS) -> Any:
    return adapter("binance").decoder(Subscription(channels, symbols))


def combined(stream: str, data: dict[str, Any]) -> bytes:
    return json.dumps({"stream": stream, "data": data}, separators=(",", ":")).encode()


def trade(number: int, symbol: str = "BTCUSDT", **changes: Any) -> dict[str, Any]:
    at = 1_790_000_000_000 + number
    data = {"e": "trade", "E": at, "s": symbol, "t": number, "p": "0.10", "q": "2", "T": at, "m": False, "M": True}
    return data | changes


def aggregate(number: int, symbol: str = "BTCUSDT", **changes: Any) -> dict[str, Any]:
    at = 1_790_000_000_000 + number
    data = {"e": "aggTrade", "E": at, "s": symbol, "a": number, "p": "0.1", "q": "2", "f": 7, "l": 7, "T": at}
    return data | {"m": True, "M": True} | changes


def quote(number: int, symbol: str = "BTCUSDT", **changes: Any) -> dict[str, Any]:
    return {"u": number, "s": symbol, "b": "1.1", "B": "2.2", "a": "3.3", "A": "4.4"} | changes


def frame(data: dict[str, Any]) -> bytes:
    return combined(f"{data['s'].lower()}@{data.get('e', 'bookTicker')}", data)


def decode(frames: list[bytes], using: Any = None) -> Decoded:
    times = np.arange(len(frames), dtype=np.int64) + NOW_US
    decoded: Decoded = (using or decoder()).decode(frames, times)
    for channel, batch in decoded.batches.items():
        batch.validate(full=True)
        assert batch.schema.equals(model.WIRE_SCHEMAS[model.CHANNELS[channel].table])
    return decoded


def rows(frames: list[bytes], channel: str, using: Any = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = decode(frames, using).batches[channel].to_pylist()
    return found


def test_a_trade_fills_every_column() -> None:
    (row,) = rows([frame(trade(41, p="64000.12000000", q="0.00100000", m=True))], "trades")
    assert row.pop("timestamp").isoformat() == "2026-09-21T14:13:20.041000+00:00"
    assert row.pop("ingestion_timestamp").timestamp() == NOW_US / 1e6
    assert row == {
        "exchange": "binance",
        "symbol": "BTCUSDT",
        "asset_class": "crypto",
        "trade_id": "41",
        "price": Decimal("64000.12"),
        "quantity": Decimal("0.001"),
        "currency": "USDT",
        "side": "SELL",
        "trade_conditions": None,
        "source_sequence": 41,
        "sequence_space": "",
        "origin": "live",
        "vendor_data": None,
        "sequence_from": 40,
    }


def test_a_buyer_who_was_the_taker_bought() -> None:
    assert rows([frame(trade(1, m=False))], "trades")[0]["side"] == "BUY"


def test_large_quantity_keeps_its_batch_and_its_value() -> None:
    """Trap 2: 12345678901.5 overflowed decimal(18,8) and took its whole batch to the dead letters."""
    found = decode([frame(trade(1)), frame(trade(2, q="12345678901.5")), frame(trade(3))])
    assert found.batches["trades"].column("quantity").to_pylist() == [2, Decimal("12345678901.5"), 2]
    assert not found.dead


def test_small_price_is_exact() -> None:
    """Trap 13: price 0.00012345 raised in decimal(18,6)."""
    assert rows([frame(trade(1, p="0.00012345"))], "trades")[0]["price"] == Decimal("0.00012345")


@pytest.mark.parametrize("value", ["123456789012345678901", "0.1234567890123456789", "", "NaN", "1,5", " 1"])
@pytest.mark.parametrize("field", ["p", "q"])
def test_a_value_that_does_not_fit_is_dead_alone(field: str, value: str) -> None:
    """Trap 2: one bad row took its batch with it and masked the reason."""
    bad = frame(trade(2, **{field: value}))
    found = decode([frame(trade(1)), bad, frame(trade(3))])
    assert found.batches["trades"].column("trade_id").to_pylist() == ["1", "3"]
    (dead,) = found.dead
    assert (dead.raw, dead.received_us) == (bad, NOW_US + 1)
    assert f"{field}={value!r}" in dead.reason


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"nonsense",
        b"[]",
        b"17",
        b'{"stream":"btcusdt@trade","data":{"e":"trade"',
        b'{"stream":"btcusdt@trade","data":{"e":"trade"}}',
        b'{"stream":"btcusdt@trade","data":null}',
        frame(trade(2, t="2")),
        frame(trade(2, t=-1)),
        frame(trade(2, t=2**63)),
        frame(trade(2, T=0)),
        frame(trade(2, T=10**18)),
        frame(trade(2, p=0.5)),
        frame(trade(2))[:-1],
        frame(trade(2)) + b"}",
        frame(trade(2)) + b"," + frame(trade(2)),
        b'{"surprise":1}',
        b'{"error":{"code":2,"msg":"Invalid request"},"id":1}',
    ],
)
def test_an_undecodable_frame_is_dead_with_its_bytes_and_its_neighbours_go_on(bad: bytes) -> None:
    """Trap 3: undecodable records were logged, skipped and lost."""
    found = decode([frame(trade(1)), bad, frame(trade(3)), frame(quote(9))])
    assert [(dead.raw, dead.received_us) for dead in found.dead] == [(bad, NOW_US + 1)]
    assert found.dead[0].reason
    assert found.batches["trades"].column("trade_id").to_pylist() == ["1", "3"]
    assert found.batches["quotes"].num_rows == 1


def test_only_dead_frames_give_no_batch() -> None:
    found = decode([b"x", frame(trade(1, p="x"))])
    assert len(found.dead) == 2
    assert not found.batches


def test_no_frames_give_nothing() -> None:
    assert decode([]) == Decoded()


@pytest.mark.parametrize("time", [1_790_000_000_123, 1_790_000_000_123_000])
def test_milliseconds_and_microseconds_are_the_same_instant(time: int) -> None:
    (row,) = rows([frame(trade(1, T=time))], "trades")
    assert row["timestamp"].isoformat() == "2026-09-21T14:13:20.123000+00:00"


def test_milliseconds_and_microseconds_may_share_a_batch() -> None:
    found = rows([frame(trade(1, T=1_790_000_000_123)), frame(trade(2, T=1_790_000_000_123_456))], "trades")
    assert [row["timestamp"].microsecond for row in found] == [123_000, 123_456]


def test_currencies_come_from_the_exchange_and_are_guessed_until_then() -> None:
    """Trap 13: FDUSD pairs were parsed as ("BTCFD", "USD")."""
    using = decoder()
    frames = [frame(trade(1, symbol)) for symbol in SYMBOLS]
    assert [row["currency"] for row in rows(frames, "trades", using)] == ["USDT", "FDUSD", "DAI"]
    using.learn({"BTCFDUSD": Instrument("BTCFDUSD", "ODD")})
    assert [row["currency"] for row in rows(frames, "trades", using)] == ["USDT", "ODD", "DAI"]


def test_every_aggregate_field_can_be_had_back() -> None:
    found = rows(
        [
            frame(aggregate(5, f=10, l=12, E=1_790_000_000_009, M=False)),
            frame(aggregate(6, f=13, l=13)),
            frame(aggregate(7, f=14, l=15)),
        ],
        "agg_trades",
    )
    assert [dict(row["vendor_data"]) for row in found] == [
        {"f": "10", "l": "12", "E": "1790000000009", "M": "false"},
        {"f": "13"},
        {"f": "14", "l": "15"},
    ]
    assert [(row["trade_id"], row["sequence_from"], row["sequence_space"]) for row in found] == [
        ("5", 4, "agg"),
        ("6", 5, "agg"),
        ("7", 6, "agg"),
    ]


def test_a_trade_ignored_by_best_match_says_so() -> None:
    found = rows([frame(trade(1)), frame(trade(2, M=False))], "trades")
    assert [row["vendor_data"] for row in found] == [None, [("M", "false")]]


def test_void_aggregates_are_counted_and_covered_by_the_next_row() -> None:
    """The exchange marks duplicates as p = q = 0, f = l = -1; they must look like neither trade nor gap."""
    using = decoder()
    void = {"p": "0", "q": "0", "f": -1, "l": -1}
    found = decode([frame(aggregate(5)), frame(aggregate(6, **void)), frame(aggregate(7, **void))], using)
    assert found.ignored == 2
    assert found.batches["agg_trades"].column("trade_id").to_pylist() == ["5"]
    later = rows([frame(aggregate(8, "ETHDAI")), frame(aggregate(8)), frame(aggregate(9))], "agg_trades", using)
    assert [(row["symbol"], row["sequence_from"]) for row in later] == [("ETHDAI", 7), ("BTCUSDT", 5), ("BTCUSDT", 8)]


def test_a_void_aggregate_before_a_real_gap_covers_nothing() -> None:
    void = frame(aggregate(6, p="0", q="0", f=-1, l=-1))
    found = rows([frame(aggregate(5)), void, frame(aggregate(9))], "agg_trades")
    assert [row["sequence_from"] for row in found] == [4, 8]


def test_quotes_are_rows_of_their_own() -> None:
    """Trap 14: the consumer always wrote trades."""
    (row,) = rows([frame(quote(77))], "quotes")
    assert (row["quote_id"], row["source_sequence"], row["sequence_from"]) == ("77", 77, 76)
    names = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")
    assert [row[name] for name in names] == [Decimal("1.1"), Decimal("2.2"), Decimal("3.3"), Decimal("4.4")]
    assert row["timestamp"] == row["ingestion_timestamp"]


def test_a_quote_covers_all_ids_since_the_one_before_it_on_the_same_connection() -> None:
    using = decoder()
    first = rows([frame(quote(10)), frame(quote(5, "ETHDAI")), frame(quote(14))], "quotes", using)
    assert [row["sequence_from"] for row in first] == [9, 4, 10]
    second = rows([frame(quote(6, "ETHDAI")), frame(quote(20))], "quotes", using)
    assert [row["sequence_from"] for row in second] == [5, 14]
    assert rows([frame(quote(30))], "quotes")[0]["sequence_from"] == 29  # a new connection


def test_repeated_and_reset_quote_ids_cover_themselves() -> None:
    found = rows([frame(quote(number)) for number in (10, 10, 8, 12, 3)], "quotes")
    assert [row["sequence_from"] for row in found] == [9, 9, 7, 8, 2]


def test_a_dead_quote_is_not_covered_by_its_neighbour() -> None:
    found = rows([frame(quote(10)), frame(quote(11, b="x")), frame(quote(12))], "quotes")
    assert [row["sequence_from"] for row in found] == [9, 11]


def test_raw_frames_without_a_stream_give_the_same_rows() -> None:
    data = [trade(1), aggregate(2), quote(3), trade(4, "ETHDAI")]
    plain = decode([json.dumps(item).encode() for item in data])
    wrapped = decode([frame(item) for item in data])
    for channel in ALL:
        drop = ["ingestion_timestamp", "timestamp"] if channel == "quotes" else ["ingestion_timestamp"]
        assert plain.batches[channel].drop_columns(drop).equals(wrapped.batches[channel].drop_columns(drop))


def test_raw_and_combined_frames_of_a_channel_share_a_batch() -> None:
    found = rows(
        [frame(trade(1)), json.dumps(trade(2)).encode(), json.dumps({"stream": "x", "data": {}}).encode()], "trades"
    )
    assert sorted(row["trade_id"] for row in found) == ["1", "2"]


def test_spaces_after_colons_change_nothing() -> None:
    spaced = json.dumps({"stream": "btcusdt@trade", "data": trade(1)}, indent=1).encode()
    assert rows([spaced, spaced], "trades")[1]["trade_id"] == "1"


def test_streams_that_begin_alike_are_told_apart() -> None:
    """Streams are looked up by a frame's first bytes, which may not hold the whole of a long name."""
    long = tuple(f"{'A' * length}{last}USDT" for length in (5, 18, 19, 20, 30, 40) for last in "BC")
    frames = [frame(kind(number, symbol)) for number, symbol in enumerate(long) for kind in (trade, quote)]
    using = decoder(symbols=long)
    for _ in range(2):
        found = decode(frames, using)
        assert [found.batches[channel].column("symbol").to_pylist() for channel in ("trades", "quotes")] == [
            list(long),
            list(long),
        ]


@pytest.mark.parametrize(
    "other",
    [
        combined("btcusdt@depth@100ms", {"e": "depthUpdate", "U": 1, "u": 2, "b": [], "a": []}),
        combined("btcusdt@kline_1m", {"e": "kline", "k": {}}),
        combined("dogeusdt@trade", trade(1, "DOGEUSDT")),
        json.dumps({"e": "kline", "s": "BTCUSDT"}).encode(),
        json.dumps(trade(1, "DOGEUSDT")).encode(),
    ],
)
def test_streams_that_nobody_subscribed_are_counted_not_dead(other: bytes) -> None:
    using = decoder()
    for _ in range(2):
        found = decode([other, frame(trade(1)), other], using)
        assert (found.ignored, found.dead, found.batches["trades"].num_rows) == (2, [], 1)


def test_answers_to_our_own_messages_are_control() -> None:
    found = decode([b'{"result":null,"id":1}', frame(trade(1))])
    assert (found.control, found.ignored, found.dead) == (1, 0, [])


@pytest.mark.parametrize(
    "event",
    [b'{"e":"serverShutdown","E":1790000000000}', combined("!serverShutdown", {"e": "serverShutdown", "E": 1})],
)
def test_an_announced_shutdown_is_an_event(event: bytes) -> None:
    found = decode([event, frame(trade(1))])
    assert (found.events, found.dead, found.batches["trades"].num_rows) == ([SHUTDOWN], [], 1)


def test_all_trades_of_a_run_become_rows_in_order() -> None:
    """Trap 16: only the first trade of several was kept."""
    frames = [frame(trade(number, SYMBOLS[number % 3])) for number in range(5_000)]
    batch = decode(frames).batches["trades"]
    assert batch.column("source_sequence").to_pylist() == list(range(5_000))
    assert batch.column("ingestion_timestamp").cast(pa.int64()).to_pylist() == list(range(NOW_US, NOW_US + 5_000))


def test_rows_are_ordered_by_group_and_as_received_within_it() -> None:
    using = adapter("binance").decoder(Subscription(ALL, SYMBOLS, groups=(1, 0, 1)))
    frames: list[bytes] = []
    for number in range(300):
        frames += [frame(trade(number, SYMBOLS[number % 3])), frame(quote(number, SYMBOLS[number % 3])), b'{"id":1}']
    found = decode(frames, using)
    assert len(found.dead) == 300
    for channel in ("trades", "quotes"):
        ids = found.batches[channel].column("source_sequence").to_pylist()
        assert ids == [i for i in range(300) if i % 3 == 1] + [i for i in range(300) if i % 3 != 1]
        times = found.batches[channel].column("ingestion_timestamp").cast(pa.int64()).to_pylist()
        at = 0 if channel == "trades" else 1
        assert times == [NOW_US + 3 * number + at for number in ids]


def test_decoding_has_no_cost_for_each_row_but_the_json() -> None:
    """Trap 24: 8 to 9 us a row to build Arrow from dictionaries. Loose, since the machine may be busy."""
    import time

    frames = [frame(trade(number, SYMBOLS[number % 3])) for number in range(2_000)]
    times = np.full(2_000, NOW_US, dtype=np.int64)
    using, best = decoder(), 1.0
    for _ in range(8):
        started = time.process_time()
        using.decode(frames, times)
        best = min(best, time.process_time() - started)
    assert best / 2_000 < 5e-6
