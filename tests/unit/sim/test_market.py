import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.sim.market import LOOP, Block, Channel, Market, split_symbol

SYMBOLS = ("BTCUSDT", "ETHBTC", "SHIBUSDT")


def run(market: Market, ticks: list[int]) -> list[Block]:
    return [block for n, trades in enumerate(ticks) for block in market.advance(trades, 1_700_000_000_000_000 + n)]


def ids_of(market: Market, blocks: list[Block], channel: Channel, symbol: int) -> list[int]:
    ids: list[int] = []
    for block in blocks:
        if (block.channel, block.symbol) == (channel, symbol):
            ordinals = np.arange(block.first, block.first + block.count)
            ids += market.ids(channel, symbol, block.epoch, ordinals).tolist()
    return ids


@settings(max_examples=30, deadline=None)
@given(ticks=st.lists(st.integers(0, 3 * LOOP), min_size=1, max_size=6), seed=st.integers(0, 3))
def test_ids_step_by_one_and_quote_ids_grow_and_skip(ticks: list[int], seed: int) -> None:
    market = Market(seed, SYMBOLS)
    blocks = run(market, ticks)
    assert sum(block.count for block in blocks if block.channel is Channel.TRADE) == sum(ticks)
    for symbol in range(len(SYMBOLS)):
        for channel in (Channel.TRADE, Channel.AGG_TRADE):
            ids = ids_of(market, blocks, channel, symbol)
            assert ids == list(range(ids[0], ids[0] + len(ids))) if ids else True
        updates = np.diff(ids_of(market, blocks, Channel.BOOK_TICKER, symbol))
        assert (updates >= 1).all()
        assert len(updates) < 100 or (updates > 1).mean() > 0.5


@settings(max_examples=30, deadline=None)
@given(ticks=st.lists(st.integers(0, 2 * LOOP), min_size=1, max_size=6))
def test_what_happens_does_not_depend_on_how_time_is_cut(ticks: list[int]) -> None:
    piecewise, at_once = Market(7, SYMBOLS), Market(7, SYMBOLS)
    pieces, whole = run(piecewise, ticks), run(at_once, [sum(ticks)])
    for symbol in range(len(SYMBOLS)):
        for channel in Channel:
            assert ids_of(piecewise, pieces, channel, symbol) == ids_of(at_once, whole, channel, symbol)


def test_the_seed_decides_content() -> None:
    one, same, other = (Market(seed, SYMBOLS).symbols[0].tape for seed in (1, 1, 2))
    assert (one.prices == same.prices).all()
    assert (one.update_offsets == same.update_offsets).all()
    assert (one.prices != other.prices).any()


@pytest.mark.parametrize("symbol", range(3))
def test_aggregate_trades_cover_all_trades_once_and_add_them_up(symbol: int) -> None:
    market = Market(3, SYMBOLS)
    run(market, [3 * LOOP * 3])
    state = market.symbols[symbol]
    ordinals = np.arange(state.done[Channel.AGG_TRADE])
    firsts, lasts = market.trade_ids_of_aggregates(symbol, 0, ordinals)
    base = state.first_ids[0][Channel.TRADE]
    assert firsts[0] == base
    assert (firsts[1:] == lasts[:-1] + 1).all()
    assert lasts[-1] < base + state.done[Channel.TRADE]
    for n in (0, 1, 77, state.tape.groups - 1):
        rows = slice(firsts[n] - base, lasts[n] - base + 1)
        assert state.tape.quantities[rows].sum() == state.tape.group_quantities[n]
        assert set(state.tape.prices[rows]) == {state.tape.group_prices[n]}
        assert set(state.tape.buyer_is_maker[rows]) == {state.tape.group_makers[n]}


def test_prices_walk_in_small_steps_also_where_the_loop_closes() -> None:
    for symbol in Market(5, SYMBOLS).symbols:
        prices = np.append(symbol.tape.prices, symbol.tape.prices[0])
        assert (prices > 0).all()
        assert (np.abs(np.diff(prices)) / prices[:-1]).max() < 0.01
        assert (symbol.tape.asks > symbol.tape.bids).all()


def test_a_reset_begins_a_new_epoch_at_one() -> None:
    market = Market(1, SYMBOLS)
    run(market, [30])
    assert market.reset_ids("ETHBTC") == 1
    blocks = run(market, [30])
    assert ids_of(market, blocks, Channel.TRADE, 1) == list(range(1, 11))
    assert ids_of(market, blocks, Channel.TRADE, 0)[0] > 10
    assert {block.epoch for block in blocks if block.symbol == 1} == {1}


@pytest.mark.parametrize(
    ("symbol", "parts"),
    [
        ("BTCUSDT", ("BTC", "USDT")),
        ("BTCFDUSD", ("BTC", "FDUSD")),
        ("ETHDAI", ("ETH", "DAI")),
        ("BTCUSD1", ("BTC", "USD1")),
        ("NKNUSDT", ("NKN", "USDT")),
        ("BLZETH", ("BLZ", "ETH")),
    ],
)
def test_quote_assets_are_not_guessed_by_length(symbol: str, parts: tuple[str, str]) -> None:
    """Trap 13: FDUSD pairs parsed as ("BTCFD", "USD")."""
    assert split_symbol(symbol) == parts
