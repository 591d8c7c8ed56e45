"""Asking an exchange about its symbols: within the request budget, and not at all while it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from k2ray.errors import TooOften
from k2ray.exchanges import adapter
from k2ray.feed.instruments import fetch_instruments
from k2ray.feed.transport import tls_context
from tests.support.sim import Sim, start_sim

pytestmark = pytest.mark.integration


class Permits:
    """Grants everything and remembers it."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int]] = []

    async def __call__(self, resource: str, amount: int) -> None:
        self.taken.append((resource, amount))


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Sim]:
    with start_sim(tmp_path, rate=10, truth=False) as sim:
        yield sim


async def test_every_request_asks_for_its_weight_also_when_each_symbol_is_asked_for_alone(sim: Sim) -> None:
    """One unknown symbol refuses the whole request: with many symbols the single ones would pass the limit."""
    permits = Permits()
    context = tls_context(sim.ca_file, sim.crl_file)
    found = await fetch_instruments(adapter("binance"), sim.rest_url, context, ["BTCUSDT", "ETHUSDT"], permits)
    assert {symbol: item.currency for symbol, item in found.items()} == {"BTCUSDT": "USDT", "ETHUSDT": "USDT"}
    assert permits.taken == [("weight", 20)]
    found = await fetch_instruments(adapter("binance"), sim.rest_url, context, ["BTCUSDT", "NOSUCH"], permits)
    assert set(found) == {"BTCUSDT"}
    assert permits.taken == [("weight", 20)] * 4


@pytest.mark.parametrize("code", [429, 418])
async def test_an_exchange_that_refuses_is_left_alone_for_as_long_as_it_says(sim: Sim, code: int) -> None:
    sim.fault("rest_refuse", code=code, seconds=30)
    with pytest.raises(TooOften, match=f"HTTP {code}") as caught:
        await fetch_instruments(adapter("binance"), sim.rest_url, tls_context(sim.ca_file), ["BTCUSDT"], Permits())
    assert 1 <= caught.value.after_s <= 31
