import json

import pytest

from k2ray.errors import BadInput
from k2ray.sim.faults import FaultPlan, FaultRequest, alter, read_request
from k2ray.sim.frames import split_frames
from k2ray.sim.market import Block, Channel

PAYLOADS = [json.dumps({"e": "trade", "t": n, "p": "1.5"}, separators=(",", ":")).encode() for n in range(10)]


def block(first: int = 0, count: int = 10, channel: Channel = Channel.TRADE) -> Block:
    return Block(channel, 0, 0, first, count, 0)


def sent_under(request: FaultRequest, connection: int = 1) -> list[bytes]:
    plan = FaultPlan()
    plan.add(request)
    alterations, _ = plan.apply(block(), "BTCUSDT", {1, 2})
    data, count, _ = alter(PAYLOADS, alterations, connection)
    payloads = split_frames(data)
    assert len(payloads) == count
    return payloads


@pytest.mark.parametrize(
    ("request_", "altered"),
    [
        (FaultRequest("id_gap", count=3), []),
        (FaultRequest("duplicate", count=3), [p for payload in PAYLOADS[:3] for p in (payload, payload)]),
        (FaultRequest("reorder", count=3), PAYLOADS[2::-1]),
        (FaultRequest("truncated", count=3), [payload[: len(payload) // 2] for payload in PAYLOADS[:3]]),
    ],
)
def test_only_the_named_number_of_frames_is_altered(request_: FaultRequest, altered: list[bytes]) -> None:
    assert sent_under(request_) == [*altered, *PAYLOADS[3:]]


@pytest.mark.parametrize("how", ["json", "price", "missing", "utf8"])
def test_malformed_frames_cannot_be_read_as_a_trade(how: str) -> None:
    first, *others = sent_under(FaultRequest("malformed", how=how))
    assert others == PAYLOADS[1:]
    try:
        frame = json.loads(first.decode())
    except ValueError:
        assert how in ("json", "utf8")
    else:
        assert frame.get("p") != "1.5"


def test_an_oversized_frame_is_the_same_trade_in_too_many_bytes() -> None:
    first, *others = sent_under(FaultRequest("oversized", size=100_000))
    assert len(first) == 100_000
    assert json.loads(first) == json.loads(PAYLOADS[0])
    assert others == PAYLOADS[1:]


def test_a_fault_of_one_connection_spares_the_other() -> None:
    assert sent_under(FaultRequest("id_gap", count=3, connection=1), connection=2) == PAYLOADS
    assert sent_under(FaultRequest("id_gap", count=3, connection=1), connection=1) == PAYLOADS[3:]


def test_frames_that_end_amid_the_socket_end_the_connection() -> None:
    plan = FaultPlan()
    plan.add(FaultRequest("truncated", how="socket"))
    alterations, _ = plan.apply(block(), "BTCUSDT", {1})
    data, whole, ends = alter(PAYLOADS, alterations, 1)
    assert (whole, ends) == (0, True)
    assert 0 < len(data) < len(PAYLOADS[0])


def test_a_fault_waits_for_its_frames_over_several_blocks() -> None:
    plan = FaultPlan()
    plan.add(FaultRequest("reorder", count=4, symbol="BTCUSDT"))
    sent: list[bytes] = []
    for first in range(0, 10, 3):
        alterations, marks = plan.apply(block(first, 3), "BTCUSDT", {1})
        sent += split_frames(alter(PAYLOADS[first : first + 3], alterations, 1)[0])
        assert all(mark.first == first for mark in marks)
    assert sent == [*PAYLOADS[3::-1], *PAYLOADS[4:10]]
    assert not plan


@pytest.mark.parametrize(
    ("channel", "symbol", "listeners"),
    [(Channel.TRADE, "ETHUSDT", {1}), (Channel.BOOK_TICKER, "BTCUSDT", {1}), (Channel.TRADE, "BTCUSDT", set())],
)
def test_frames_that_are_not_meant_do_not_use_a_fault_up(channel: Channel, symbol: str, listeners: set[int]) -> None:
    plan = FaultPlan()
    plan.add(FaultRequest("id_gap", symbol="BTCUSDT"))
    assert plan.apply(block(channel=channel), symbol, listeners) == ([], [])
    assert plan


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"fault":"explode"}',
        b'{"fault":"close","cuont":1}',
        b'{"fault":"malformed","how":"badly"}',
        b'{"fault":"delay"}',
        b'{"fault":"reorder","count":1}',
        b'{"fault":"id_gap","count":0}',
        b'{"fault":"clock_step"}',
        b'{"fault":"outage","seconds":-1}',
        b'{"fault":"rest_refuse","seconds":5}',
    ],
)
def test_requests_that_make_no_sense_are_refused(body: bytes) -> None:
    with pytest.raises(BadInput):
        read_request(body)
