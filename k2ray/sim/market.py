"""What happens on the simulated exchange: a pure generator, deterministic from its seed.

Each symbol owns a `Tape`: a loop of `LOOP` trades whose prices walk and return to their start, grouped into aggregate
trades, and as many quotes. The n-th trade of a symbol (its *ordinal*, from 0) has the content of row n mod LOOP and the
id `first id + n`, so a run of any length is told by (channel, symbol, epoch, first ordinal, count, time): a `Block`.
Frames, REST answers and the truth file are all expanded from blocks. Nothing here reads a clock or a socket.

Next in the flow: `frames.py`.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

LOOP = 8192
"""Rows in a tape. 8,192 trades of one symbol are about 1.5 MB of frames a channel and form."""

MATCH_LEAD_US = 1_000
"""An event is sent this much after its trade was matched: `T` lies before `E`, as on the real exchange."""

QUOTE_ASSETS = (
    "USDT", "FDUSD", "USDC", "TUSD", "BUSD", "USDP", "DAI", "AEUR", "EURI", "XUSD", "USD1",
    "BTC", "ETH", "BNB", "TRY", "EUR", "BRL", "GBP", "AUD", "JPY", "MXN", "ARS", "PLN", "RON", "ZAR", "UAH", "IDR",
    "DOGE", "SOL", "XRP", "TRX", "DOT",
)  # fmt: skip

_KNOWN_PRICES = {
    "BTC": 67_000.0,
    "ETH": 3_400.0,
    "BNB": 590.0,
    "SOL": 150.0,
    "XRP": 0.52,
    "DOGE": 0.12,
    "SHIB": 0.00002,
}


class Channel(enum.IntEnum):
    """The streams that the simulator generates; the numbers stand in the truth's log."""

    TRADE = 0
    AGG_TRADE = 1
    BOOK_TICKER = 2

    @property
    def stream(self) -> str:
        """Return the stream's name after the `@`."""
        return STREAMS[self]


STREAMS = {Channel.TRADE: "trade", Channel.AGG_TRADE: "aggTrade", Channel.BOOK_TICKER: "bookTicker"}
CHANNELS = {name: channel for channel, name in STREAMS.items()}


def split_symbol(symbol: str) -> tuple[str, str]:
    """Return (base, quote): the longest known quote asset that the symbol ends with, else its last three letters."""
    for quote in sorted(QUOTE_ASSETS, key=len, reverse=True):
        if symbol.endswith(quote) and len(symbol) > len(quote):
            return symbol[: -len(quote)], quote
    return symbol[:-3], symbol[-3:]


@dataclass(frozen=True, slots=True)
class Block:
    """A run of neighbours of one channel and symbol, all with one time.

    Attributes:
        channel: Which stream.
        symbol: Index into the market's symbols.
        epoch: 0, and one more after each reset of the symbol's ids.
        first: Ordinal of the first row within the epoch.
        count: How many rows.
        event_us: The exchange's event time `E`; the trade time `T` is `MATCH_LEAD_US` before it.
    """

    channel: Channel
    symbol: int
    epoch: int
    first: int
    count: int
    event_us: int


class Tape:
    """One symbol's loop of trades, aggregate trades and quotes; numbers are kept as integers of 1e-8.

    Attributes:
        prices, quantities, buyer_is_maker: Of `LOOP` trades.
        group_ends: Row after the last trade of each aggregate trade; the last one is LOOP.
        bids, bid_quantities, asks, ask_quantities: Of `LOOP` quotes.
        update_offsets: Each quote's `u` within the loop: grows and skips. `update_span`: what a whole loop adds.
    """

    def __init__(self, seed: int, symbol: str) -> None:
        rng = np.random.default_rng([seed, zlib.crc32(symbol.encode())])
        base, _ = split_symbol(symbol)
        start = _KNOWN_PRICES.get(base, float(10 ** rng.uniform(-3, 2)))
        # One tick is about 1e-5 of the price, and a round number of 1e-8.
        tick = max(1, int(10 ** np.floor(np.log10(start * 1e3))))
        middle = max(2_000, round(start * 1e8 / tick))

        sizes = rng.choice([1, 1, 1, 2, 3], size=LOOP)
        ends = np.cumsum(sizes)
        self.group_ends: NDArray[np.int64] = np.append(ends[ends < LOOP], LOOP).astype(np.int64)
        groups = len(self.group_ends)
        steps = rng.integers(-3, 4, size=groups)
        walk = np.cumsum(steps)
        # A bridge: the last price leads back to the first, so that the loop has no jump.
        walk = walk - np.round(np.linspace(0, walk[-1], groups)).astype(np.int64)
        walk = np.clip(walk, -middle // 2, middle // 2) + middle
        maker = rng.random(groups) < 0.5
        group_of_row = np.repeat(np.arange(groups), np.diff(self.group_ends, prepend=0))
        self.buyer_is_maker: NDArray[np.bool_] = maker[group_of_row]
        self.group_prices: NDArray[np.int64] = (walk - maker) * tick
        self.group_makers: NDArray[np.bool_] = maker
        self.prices: NDArray[np.int64] = self.group_prices[group_of_row]
        unit = 100 if start > 1000 else 10_000
        self.quantities: NDArray[np.int64] = self._quantities(rng, start, unit)
        self.group_quantities: NDArray[np.int64] = np.add.reduceat(self.quantities, np.append(0, self.group_ends[:-1]))

        self.bids: NDArray[np.int64] = (walk[group_of_row] - 1) * tick
        self.asks: NDArray[np.int64] = walk[group_of_row] * tick
        self.bid_quantities: NDArray[np.int64] = self._quantities(rng, start, unit)
        self.ask_quantities: NDArray[np.int64] = self._quantities(rng, start, unit)
        skips = rng.choice([1, 2, 3, 5, 17], size=LOOP, p=[0.3, 0.3, 0.2, 0.15, 0.05])
        self.update_offsets: NDArray[np.int64] = (np.cumsum(skips) - skips[0]).astype(np.int64)
        self.update_span = int(skips.sum())

    @staticmethod
    def _quantities(rng: np.random.Generator, price: float, unit: int) -> NDArray[np.int64]:
        """Return sizes worth some hundreds of the quote asset, rounded to `unit` of 1e-8."""
        worth = rng.lognormal(5.5, 1.2, size=LOOP)
        return np.maximum(1, np.round(worth / price * 1e8 / unit)).astype(np.int64) * unit

    @property
    def groups(self) -> int:
        """Return how many aggregate trades one loop has."""
        return len(self.group_ends)

    def aggregates_after(self, trades: int) -> int:
        """Return how many aggregate trades are complete once `trades` trades have happened."""
        loops, row = divmod(trades, LOOP)
        return loops * self.groups + int(np.searchsorted(self.group_ends, row, side="right"))

    def trade_range(self, ordinals: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return first and last trade ordinal of aggregate trades, inclusive."""
        loops, rows = np.divmod(ordinals, self.groups)
        lasts = self.group_ends[rows] - 1
        firsts = np.where(rows > 0, self.group_ends[rows - 1], 0)
        return loops * LOOP + firsts, loops * LOOP + lasts

    def update_ids(self, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return `u` of quotes, relative to the first quote's."""
        loops, rows = np.divmod(ordinals, LOOP)
        return loops * self.update_span + self.update_offsets[rows]


@dataclass
class SymbolState:
    """Where one symbol stands within its current epoch.

    Attributes:
        first_ids: First id of each channel in each epoch (`first_ids[epoch][channel]`).
        done: Next ordinal of each channel.
    """

    name: str
    tape: Tape
    first_ids: list[tuple[int, int, int]]
    done: list[int] = field(default_factory=lambda: [0, 0, 0])

    @property
    def epoch(self) -> int:
        """Return the current epoch."""
        return len(self.first_ids) - 1


class Market:
    """All symbols; `advance` lets trades happen.

    Args:
        seed: Everything but the times follows from it and from the symbols' names.
        symbols: Upper-case names.
        quotes_per_trade: How many quotes follow each trade, on average.
        first_id: First trade id of every symbol; None: ten-digit numbers that differ by symbol.
    """

    def __init__(
        self,
        seed: int,
        symbols: Sequence[str],
        *,
        quotes_per_trade: float = 1.0,
        first_id: int | None = None,
    ) -> None:
        self.seed = seed
        self.quotes_per_trade = quotes_per_trade
        self.symbols = [
            SymbolState(name, Tape(seed, name), [_first_ids(index, first_id)]) for index, name in enumerate(symbols)
        ]
        self.index = {state.name: index for index, state in enumerate(self.symbols)}
        self.trades = 0

    @cached_property
    def _schedule(self) -> NDArray[np.int64]:
        """Return which symbol trades when: each once a round, in shuffled order, repeated."""
        rng = np.random.default_rng([self.seed, 1])
        rounds = max(1, 4096 // len(self.symbols))
        return np.concatenate([rng.permutation(len(self.symbols)) for _ in range(rounds)]).astype(np.int64)

    def advance(self, trades: int, event_us: int) -> list[Block]:
        """Let `trades` trades happen over all symbols, with the aggregates and quotes that follow from them.

        Args:
            trades: How many; which symbols they fall on is the schedule's.
            event_us: The event time of all of them; must not go back.
        """
        schedule = self._schedule
        rounds, rest = divmod(trades, len(schedule))
        at = self.trades % len(schedule)
        piece = np.concatenate((schedule[at : at + rest], schedule[: max(0, at + rest - len(schedule))]))
        counts = np.bincount(piece, minlength=len(self.symbols))
        if rounds:
            counts = counts + rounds * np.bincount(schedule, minlength=len(self.symbols))
        self.trades += trades
        blocks: list[Block] = []
        for index in np.nonzero(counts)[0].tolist():
            self._advance_symbol(index, int(counts[index]), event_us, blocks)
        return blocks

    def _advance_symbol(self, index: int, trades: int, event_us: int, blocks: list[Block]) -> None:
        state = self.symbols[index]
        total = state.done[Channel.TRADE] + trades
        ends = (total, state.tape.aggregates_after(total), int(total * self.quotes_per_trade))
        for channel in Channel:
            first, end = state.done[channel], ends[channel]
            state.done[channel] = end
            if end > first:
                blocks.append(Block(channel, index, state.epoch, first, end - first, event_us))

    def reset_ids(self, symbol: str) -> int:
        """Start a symbol's ids again at 1 and return its new epoch. An unfinished aggregate trade is never told."""
        state = self.symbols[self.index[symbol]]
        state.first_ids.append((1, 1, 1))
        state.done = [0, 0, 0]
        return state.epoch

    def ids(self, channel: Channel, symbol: int, epoch: int, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids (`t`, `a` or `u`) of rows."""
        state = self.symbols[symbol]
        base = state.first_ids[epoch][channel]
        return base + (state.tape.update_ids(ordinals) if channel is Channel.BOOK_TICKER else ordinals)

    def trade_ids_of_aggregates(
        self, symbol: int, epoch: int, ordinals: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return first and last trade id (`f`, `l`) of aggregate trades."""
        state = self.symbols[symbol]
        base = state.first_ids[epoch][Channel.TRADE]
        firsts, lasts = state.tape.trade_range(ordinals)
        return base + firsts, base + lasts

    def loop_length(self, channel: Channel, symbol: int) -> int:
        """Return after how many rows a channel's content repeats."""
        return self.symbols[symbol].tape.groups if channel is Channel.AGG_TRADE else LOOP


def _first_ids(index: int, first_id: int | None) -> tuple[int, int, int]:
    if first_id is not None:
        return (first_id, first_id, first_id)
    return (4_000_000_001 + index * 10_000_000, 2_000_000_001 + index * 10_000_000, 6_000_000_001 + index * 10_000_000)


def decimal_text(values: NDArray[np.int64]) -> list[str]:
    """Return integers of 1e-8 as Binance writes them: with exactly eight decimals."""
    return [f"{value // 100_000_000}.{value % 100_000_000:08d}" for value in values.tolist()]
