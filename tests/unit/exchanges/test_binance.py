"""What the Binance adapter says about the exchange."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from k2ray.errors import BadFrame, SettingsError
from k2ray.exchanges import adapter
from k2ray.exchanges.base import Instrument, Subscription
from k2ray.exchanges.binance_rows import guess_currency
from k2ray.settings import Binance


def test_the_url_subscribes_to_all_channels_of_all_symbols() -> None:
    url = adapter("binance").stream_url(Binance(), Subscription(("trades", "quotes"), ("BTCUSDT", "ETHUSDT")))
    assert url.startswith("wss://stream.binance.com:9443/stream?")
    query = parse_qs(urlsplit(url).query)
    streams = "btcusdt@trade/ethusdt@trade/btcusdt@bookTicker/ethusdt@bookTicker"
    assert query == {"streams": [streams], "timeUnit": ["MICROSECOND"]}


def test_the_exchange_names_the_quote_currency() -> None:
    body = b'{"timezone":"UTC","symbols":[{"symbol":"BTCFDUSD","baseAsset":"BTC","quoteAsset":"FDUSD"}]}'
    assert adapter("binance").parse_instruments(body) == {"BTCFDUSD": Instrument("BTCFDUSD", "FDUSD")}


@pytest.mark.parametrize("body", [b"<html>", b'{"symbols":[{"symbol":1}]}', b"{}"])
def test_an_odd_answer_is_refused(body: bytes) -> None:
    with pytest.raises(BadFrame):
        adapter("binance").parse_instruments(body)


def test_requests_for_many_symbols_have_bounded_length() -> None:
    paths = adapter("binance").instrument_paths([f"SYMBOL{number}USDT" for number in range(120)])
    assert len(paths) == 3
    assert max(map(len, paths)) < 2_000
    assert parse_qs(urlsplit(paths[2]).query)["symbols"][0].startswith('["SYMBOL100USDT"')


@pytest.mark.parametrize(
    ("symbol", "currency"),
    [("BTCFDUSD", "FDUSD"), ("BTCUSDT", "USDT"), ("ETHDAI", "DAI"), ("LRCBTC", "BTC"), ("RUNEEUR", "EUR"), ("XYZ", "")],
)
def test_the_longest_suffix_is_guessed(symbol: str, currency: str) -> None:
    """Trap 13: FDUSD pairs were parsed as ("BTCFD", "USD")."""
    assert guess_currency(symbol) == currency


def test_only_ids_that_step_by_one_prove_gaps() -> None:
    rules = {
        channel: adapter("binance").sequence_rule(channel).proves_gaps for channel in ("trades", "agg_trades", "quotes")
    }
    assert rules == {"trades": True, "agg_trades": True, "quotes": False}


def test_an_unknown_exchange_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="mtgox"):
        adapter("mtgox")
