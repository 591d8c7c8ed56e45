import json
from typing import Any

import pytest

from k2ray.sim.book import Books
from k2ray.sim.history import History
from k2ray.sim.http import HttpRequest
from k2ray.sim.market import LOOP, MATCH_LEAD_US, Channel, Market
from k2ray.sim.rest import MarketRest

NOW = 1_795_454_110_449_123
STEP = 5_000


class World:
    """A market after some ticks, and its REST."""

    def __init__(self, ticks: int = 40, trades: int = 600) -> None:
        self.market = Market(2, ("BTCUSDT", "ETHUSDT"))
        self.histories = [History(), History()]
        self.rest = MarketRest(self.market, self.histories, Books(self.market, 50))
        for n in range(ticks):
            for block in self.market.advance(trades, NOW + n * STEP):
                if block.channel is Channel.TRADE:
                    self.histories[block.symbol].append(block.first, block.count, block.event_us)

    def get(self, path: str, micro: bool = False, **query: Any) -> Any:
        headers = {"x-mbx-time-unit": "MICROSECOND"} if micro else {}
        texts = {name: str(value) for name, value in query.items()}
        answer = self.rest.answer(HttpRequest("GET", f"/api/v3/{path}", texts, headers, b""))
        body = json.loads(answer.body)
        return body if answer.status == 200 else (answer.status, body["code"])


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_pages_of_trades_join_without_gap_or_repeat(world: World) -> None:
    first = world.market.symbols[0].first_ids[0][Channel.TRADE]
    seen: list[int] = []
    times: list[int] = []
    while page := world.get("historicalTrades", symbol="BTCUSDT", fromId=first + len(seen), limit=1000, micro=True):
        seen += [trade["id"] for trade in page]
        times += [trade["time"] for trade in page]
    assert seen == list(range(first, first + 12_000))
    assert len(seen) > LOOP
    assert times == [NOW + n // 300 * STEP - MATCH_LEAD_US for n in range(12_000)]


def test_aggregates_agree_with_the_trades_they_cover(world: World) -> None:
    first = world.market.symbols[0].first_ids[0][Channel.AGG_TRADE]
    for aggregate in world.get("aggTrades", symbol="BTCUSDT", fromId=first + 5000, limit=200):
        count = aggregate["l"] - aggregate["f"] + 1
        trades = world.get("historicalTrades", symbol="BTCUSDT", fromId=aggregate["f"], limit=count)
        assert {trade["price"] for trade in trades} == {aggregate["p"]}
        assert sum(float(trade["qty"]) for trade in trades) == pytest.approx(float(aggregate["q"]))
        assert trades[-1]["time"] == aggregate["T"]


def test_without_an_id_the_newest_are_answered(world: World) -> None:
    state = world.market.symbols[1]
    newest = world.get("historicalTrades", symbol="ETHUSDT", limit=3)
    assert newest[-1]["id"] == state.first_ids[0][Channel.TRADE] + state.done[Channel.TRADE] - 1
    aggregates = world.get("aggTrades", symbol="ETHUSDT")
    assert len(aggregates) == 500
    assert aggregates[-1]["a"] == state.first_ids[0][Channel.AGG_TRADE] + state.done[Channel.AGG_TRADE] - 1


def test_aggregates_by_time(world: World) -> None:
    start = (NOW - MATCH_LEAD_US) // 1000 + 20
    found = world.get("aggTrades", symbol="ETHUSDT", startTime=start, endTime=start + 10, limit=1000)
    assert found
    assert all(start <= trade["T"] <= start + 10 for trade in found)


@pytest.mark.parametrize(
    ("path", "query", "error"),
    [
        ("historicalTrades", {"symbol": "NONE"}, (400, -1121)),
        ("historicalTrades", {}, (400, -1121)),
        ("historicalTrades", {"symbol": "BTCUSDT", "fromId": "x"}, (400, -1100)),
        ("exchangeInfo", {"symbol": "NONE"}, (400, -1121)),
        ("exchangeInfo", {"symbols": "BTC"}, (400, -1100)),
        ("depth", {"symbol": "NONE"}, (400, -1121)),
        ("depth", {"symbol": "BTCUSDT", "limit": "x"}, (400, -1100)),
        ("nothing", {}, (404, -1)),
    ],
)
def test_bad_questions_get_binances_codes(world: World, path: str, query: dict[str, str], error: Any) -> None:
    assert world.get(path, **query) == error


def test_ids_beyond_the_newest_are_an_empty_answer(world: World) -> None:
    assert world.get("historicalTrades", symbol="BTCUSDT", fromId=9_000_000_000) == []
    assert world.get("aggTrades", symbol="BTCUSDT", fromId=9_000_000_000) == []


def test_after_a_reset_only_the_new_numbering_is_answered() -> None:
    world = World(ticks=2)
    world.market.reset_ids("BTCUSDT")
    world.histories[0].clear()
    assert world.get("historicalTrades", symbol="BTCUSDT") == []
    for block in world.market.advance(20, NOW + 10 * STEP):
        if block.channel is Channel.TRADE:
            world.histories[block.symbol].append(block.first, block.count, block.event_us)
    assert [trade["id"] for trade in world.get("historicalTrades", symbol="BTCUSDT")] == list(range(1, 11))


def test_symbols_say_base_and_quote(world: World) -> None:
    info = world.get("exchangeInfo", symbols='["ETHUSDT"]')
    assert [(s["symbol"], s["baseAsset"], s["quoteAsset"]) for s in info["symbols"]] == [("ETHUSDT", "ETH", "USDT")]


def test_a_ticker_names_the_newest_trade_and_minus_one_without_any(world: World) -> None:
    (newest,) = world.get("historicalTrades", symbol="ETHUSDT", limit=1)
    (ticker,) = world.get("ticker/24hr", symbols='["ETHUSDT"]', type="MINI")
    assert ticker["lastId"] == newest["id"]
    assert ticker["count"] == ticker["lastId"] - ticker["firstId"] + 1
    assert [row["lastId"] for row in World(ticks=0).get("ticker/24hr")] == [-1, -1]
    assert world.get("ticker/24hr", symbols='["NONE"]') == (400, -1121)
