from __future__ import annotations

import numpy as np
import pytest

from k2ray.errors import BadRecord
from k2ray.exchanges import adapter
from k2ray.exchanges.base import Subscription
from k2ray.log.causes import cause_of
from k2ray.wire.codec import KIND_HEADER, ROWS, SCHEMA_HEADER, decode

TRADE = (
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1,"s":"BTCUSDT","t":%s,'
    b'"p":"%s","q":"1","T":1,"m":true,"M":true}}'
)


@pytest.mark.parametrize(
    ("frame", "cause"),
    [
        (b"\xff\xfe", "malformed"),
        (b'{"stream":"btcusdt@trade","data":{"e":"trade"', "malformed"),
        (TRADE % (b'"x"', b"1"), "malformed"),
        (TRADE % (b"1", b"1" * 30), "out_of_range"),
        (b'{"weather":"fine"}', "unknown"),
        (b'{"id":1,"error":{"code":2,"msg":"no"}}', "refused"),
    ],
)
def test_what_the_decoder_puts_aside_has_a_cause(frame: bytes, cause: str) -> None:
    decoder = adapter("binance").decoder(Subscription(("trades",), ("BTCUSDT",), (0,)))
    dead = decoder.decode([frame], np.array([1], dtype=np.int64)).dead
    assert [cause_of(letter.reason) for letter in dead] == [cause], [letter.reason for letter in dead]


@pytest.mark.parametrize(
    ("kind", "schema", "cause"), [(b"x", b"trade-1", "unknown"), (ROWS, b"no such", "unknown"), (ROWS, None, "unknown")]
)
def test_what_the_codec_refuses_has_a_cause(kind: bytes, schema: bytes | None, cause: str) -> None:
    headers = [(KIND_HEADER, kind)] + ([(SCHEMA_HEADER, schema)] if schema else [])
    with pytest.raises(BadRecord) as refused:
        decode(b"junk", headers)
    assert cause_of(str(refused.value)) == cause


def test_reasons_of_the_writer_have_causes() -> None:
    assert cause_of("event time of 3 rows outside the years 1900 to 2199") == "out_of_range"
    assert cause_of("rows of another table than trades") == "unknown"
    assert cause_of("a sentence that nobody has written yet") == "malformed"
