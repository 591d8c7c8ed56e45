"""The market's blocks as WebSocket frames, byte for byte as Binance writes them.

A `Template` holds a symbol's whole loop as ready, unmasked frames. Sending a block copies a slice of it and patches ids
and times in place, for all frames at once: 60 ns a frame, where formatting one takes over a microsecond. A template is
made for given widths of its ids (`"t":9` and `"t":10` differ in length); a block whose ids change width is cut in two.

The payloads follow https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams; prices and quantities
are strings with eight decimals.

Next in the flow: `server.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from k2ray.sim.market import LOOP, MATCH_LEAD_US, Block, Channel, Market, decimal_text

TEXT_FRAME = 0x81
MILLISECOND_DIGITS = 13
MICROSECOND_DIGITS = 16

_DIGITS = np.frombuffer("".join(f"{number:04d}" for number in range(10_000)).encode(), dtype=np.uint8).reshape(-1, 4)


@dataclass(frozen=True, slots=True)
class Form:
    """How a client wants its frames.

    Attributes:
        combined: Wrapped in `{"stream":...,"data":...}`.
        microseconds: Times in microseconds (`timeUnit=MICROSECOND`) instead of milliseconds.
    """

    combined: bool
    microseconds: bool


@dataclass(frozen=True, slots=True)
class _Number:
    """A place in a frame's text where a number of fixed width is patched in."""

    name: str
    width: int


class Template:
    """A loop of frames, and where their numbers lie.

    Args:
        parts: The payload's pieces in order: text that all rows share, each row's own text, or a number's place.
        rows: How many frames.
    """

    def __init__(self, parts: Sequence[str | Sequence[str] | _Number], rows: int) -> None:
        columns: list[Iterator[str] | Sequence[str]] = []
        lengths: list[NDArray[np.int64] | int] = []
        for part in parts:
            if isinstance(part, _Number):
                columns.append(repeat("0" * part.width, rows))
                lengths.append(part.width)
            elif isinstance(part, str):
                columns.append(repeat(part, rows))
                lengths.append(len(part))
            else:
                columns.append(part)
                lengths.append(np.fromiter(map(len, part), dtype=np.int64, count=rows))
        frames = [text_frame("".join(texts).encode()) for texts in zip(*columns, strict=True)]
        self.frames = rows
        self._bytes = np.frombuffer(b"".join(frames), dtype=np.uint8)
        sizes = np.fromiter(map(len, frames), dtype=np.int64, count=rows)
        self._starts = np.concatenate(([0], np.cumsum(sizes)))
        payload = np.zeros(rows, dtype=np.int64)
        for length in lengths:
            payload = payload + length
        at = self._starts[:-1] + (sizes - payload)
        self._places: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        for part, length in zip(parts, lengths, strict=True):
            if isinstance(part, _Number):
                self._places[part.name] = (at, np.arange(part.width, dtype=np.int64))
            at = at + length

    def cut(self, first: int, count: int, numbers: dict[str, NDArray[np.uint8]]) -> bytearray:
        """Return `count` frames from row `first` on, with `numbers` patched in.

        Args:
            first: First row; first + count must not pass the end.
            count: How many rows.
            numbers: Each number's digits, one row a frame, or one row for all.
        """
        start = int(self._starts[first])
        cut = bytearray(self._bytes[start : int(self._starts[first + count])])
        view = np.frombuffer(cut, dtype=np.uint8)
        for name, digits in numbers.items():
            at, columns = self._places[name]
            view[(at[first : first + count] - start)[:, None] + columns] = digits
        return cut


class Encoder:
    """Turns blocks into frames. Keeps one template for each channel, symbol and form, made when first needed."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._templates: dict[tuple[Channel, int, Form], tuple[tuple[int, ...], Template]] = {}

    def encode(self, block: Block, form: Form) -> bytes | bytearray:
        """Return a block's frames, one after another."""
        pieces: list[bytearray] = []
        loop = self._market.loop_length(block.channel, block.symbol)
        ordinal, left = block.first, block.count
        while left:
            row = ordinal % loop
            count = min(left, loop - row)
            self._encode_run(block, form, ordinal, row, count, pieces)
            ordinal += count
            left -= count
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _encode_run(
        self, block: Block, form: Form, ordinal: int, row: int, count: int, pieces: list[bytearray]
    ) -> None:
        """Append the frames of a run within one loop; where an id's width changes, halve the run until it does not."""
        ordinals = np.arange(ordinal, ordinal + count, dtype=np.int64)
        numbers = self._numbers(block, ordinals)
        widths = tuple(len(str(values[0])) for values in numbers.values())
        if widths != tuple(len(str(values[-1])) for values in numbers.values()):
            half = count // 2
            self._encode_run(block, form, ordinal, row, half, pieces)
            self._encode_run(block, form, ordinal + half, row + half, count - half, pieces)
            return
        patches = {name: _digits(values, width) for (name, values), width in zip(numbers.items(), widths, strict=True)}
        if block.channel is not Channel.BOOK_TICKER:
            patches["E"] = _time_digits(block.event_us, form)
            patches["T"] = _time_digits(block.event_us - MATCH_LEAD_US, form)
        pieces.append(self._template(block.channel, block.symbol, form, widths).cut(row, count, patches))

    def _numbers(self, block: Block, ordinals: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        numbers = {"id": self._market.ids(block.channel, block.symbol, block.epoch, ordinals)}
        if block.channel is Channel.AGG_TRADE:
            numbers["f"], numbers["l"] = self._market.trade_ids_of_aggregates(block.symbol, block.epoch, ordinals)
        return numbers

    def _template(self, channel: Channel, symbol: int, form: Form, widths: tuple[int, ...]) -> Template:
        key = (channel, symbol, form)
        known = self._templates.get(key)
        if known is None or known[0] != widths:
            known = (widths, _build(self._market, channel, symbol, form, widths))
            self._templates[key] = known
        return known[1]


def _build(market: Market, channel: Channel, symbol: int, form: Form, widths: tuple[int, ...]) -> Template:
    state = market.symbols[symbol]
    name, tape = state.name, state.tape
    time_width = MICROSECOND_DIGITS if form.microseconds else MILLISECOND_DIGITS
    event, trade_time = _Number("E", time_width), _Number("T", time_width)
    head = f'{{"stream":"{name.lower()}@{channel.stream}","data":' if form.combined else ""
    tail = "}" if form.combined else ""
    text = decimal_text
    if channel is Channel.TRADE:
        parts: list[str | Sequence[str] | _Number] = [
            f'{head}{{"e":"trade","E":', event, f',"s":"{name}","t":', _Number("id", widths[0]),
            ',"p":"', text(tape.prices), '","q":"', text(tape.quantities),
            '","T":', trade_time, ',"m":', _booleans(tape.buyer_is_maker), f',"M":true}}{tail}',
        ]  # fmt: skip
        return Template(parts, LOOP)
    if channel is Channel.AGG_TRADE:
        parts = [
            f'{head}{{"e":"aggTrade","E":', event, f',"s":"{name}","a":', _Number("id", widths[0]),
            ',"p":"', text(tape.group_prices), '","q":"', text(tape.group_quantities),
            '","f":', _Number("f", widths[1]), ',"l":', _Number("l", widths[2]),
            ',"T":', trade_time, ',"m":', _booleans(tape.group_makers), f',"M":true}}{tail}',
        ]  # fmt: skip
        return Template(parts, tape.groups)
    parts = [
        f'{head}{{"u":', _Number("id", widths[0]), f',"s":"{name}","b":"', text(tape.bids),
        '","B":"', text(tape.bid_quantities), '","a":"', text(tape.asks), '","A":"', text(tape.ask_quantities),
        f'"}}{tail}',
    ]  # fmt: skip
    return Template(parts, LOOP)


def _booleans(values: NDArray[np.bool_]) -> list[str]:
    return ["true" if value else "false" for value in values.tolist()]


def _digits(values: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Return the decimal digits of `values`, one row a value, four digits at a time by table."""
    groups = -(-width // 4)
    digits = np.empty((len(values), groups * 4), dtype=np.uint8)
    rest = values
    for group in range(groups - 1, -1, -1):
        rest, low = np.divmod(rest, 10_000)
        digits[:, group * 4 : group * 4 + 4] = _DIGITS[low]
    return digits[:, groups * 4 - width :]


def _time_digits(time_us: int, form: Form) -> NDArray[np.uint8]:
    return np.frombuffer(str(time_us if form.microseconds else time_us // 1000).encode(), dtype=np.uint8)


def text_frame(payload: bytes) -> bytes:
    """Return a whole, unmasked text frame, as a server sends it (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((TEXT_FRAME, size)) + payload
    if size < 65_536:
        return bytes((TEXT_FRAME, 126)) + size.to_bytes(2, "big") + payload
    return bytes((TEXT_FRAME, 127)) + size.to_bytes(8, "big") + payload


def split_frames(data: bytes | bytearray) -> list[bytes]:
    """Return the payloads of frames that lie one after another."""
    payloads: list[bytes] = []
    at = 0
    while at < len(data):
        size = data[at + 1]
        at += 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        payloads.append(bytes(data[at : at + size]))
        at += size
    return payloads
