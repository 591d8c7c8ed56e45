"""4. Frames of one Binance connection to rows: routed by a byte test, decoded to typed structs, built as columns.

Frames that arrived together become columns together; only their JSON is read one by one, which costs the same as joined
into one array (0.34 against 0.33 us a frame) and lets no frame spill into the next. A frame that cannot be read goes to
the dead letters alone, and where a decimal does not fit, that row alone is dead.

`binance.py` documents what becomes of each field; next: `binance_rows.py` builds the columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2ray.exchanges import columns
from k2ray.exchanges.base import SHUTDOWN, DeadFrame, Decoded, Instrument, Subscription, Times
from k2ray.exchanges.binance_rows import DECIMALS, KINDS, Codes, RowBuilder

STREAMS = {"trades": "trade", "agg_trades": "aggTrade", "quotes": "bookTicker"}
"""Channel -> what Binance calls its stream; also the `e` of its frames, but for bookTicker, which has none."""

OPENING = 40
"""So many first bytes are looked up at once, half the cost of cutting the stream's name out: `{"stream":"`, a name of
up to 28 bytes and its quote mark, and after shorter names what is the same in all frames of the stream."""

_opening = itemgetter(slice(OPENING))
_QUOTE_MARK = ord('"')
_STREAM_AT = len(b'{"stream":"')
_UNKNOWN, _IGNORED, _DONE = -1, -2, -3
_CODE_BITS = 20
_CODE_MASK = (1 << _CODE_BITS) - 1
_STREAMS_REMEMBERED = 10_000

_Row = TypeVar("_Row")


class _Peek(msgspec.Struct):
    """Enough of any frame to tell what it is."""

    stream: str | None = None
    e: str | None = None
    s: str | None = None
    u: Any = None
    result: Any = msgspec.UNSET
    error: Any = None
    code: Any = None


class _Combined(msgspec.Struct, Generic[_Row], gc=False):
    data: _Row


class _Shape:
    """How frames of one channel, combined or raw, are decoded."""

    def __init__(self, channel: str, combined: bool) -> None:
        kind: Any = KINDS[channel]
        generic: Any = _Combined
        frame: Any = generic[kind] if combined else kind
        self.channel = channel
        self.combined = combined
        self._read = msgspec.json.Decoder(frame).decode

    def read(self, frames: Sequence[bytes]) -> list[Any]:
        """Return the structs of `binance_rows.KINDS[channel]`.

        Raises:
            msgspec.DecodeError, UnicodeDecodeError: One of the frames is bad.
        """
        read = self._read
        if self.combined:
            return [read(frame).data for frame in frames]
        return [read(frame) for frame in frames]


_peek = msgspec.json.Decoder(_Peek)

# A route is the shape's place here, then the symbol's code in the low bits.
_SHAPES = [_Shape(channel, combined) for channel in KINDS for combined in (True, False)]
_SHAPE_OF = {(shape.channel, shape.combined): at for at, shape in enumerate(_SHAPES)}
_CHANNEL_OF_EVENT = {event: channel for channel, event in STREAMS.items() if channel != "quotes"}


@dataclass
class _Run:
    """Frames of one shape with what is known of each, all equally long."""

    frames: Sequence[bytes]
    codes: Codes
    received_us: Times

    def only(self, keep: npt.NDArray[np.bool_]) -> _Run:
        at = np.flatnonzero(keep)
        return _Run([self.frames[i] for i in at.tolist()], self.codes[at], self.received_us[at])

    def dead(self, at: int, reason: str) -> DeadFrame:
        return DeadFrame(bytes(self.frames[at]), reason, int(self.received_us[at]))


class BinanceDecoder:
    """Decodes the frames of one connection; holds the last update id of each symbol's quotes.

    Args:
        exchange: For the `exchange` column.
        asset_class: For the `asset_class` column.
        subscription: Frames of other streams are counted as ignored.
    """

    def __init__(self, exchange: str, asset_class: str, subscription: Subscription) -> None:
        self._builder = RowBuilder(exchange, asset_class, subscription.symbols)
        self._code_of = {symbol: code for code, symbol in enumerate(subscription.symbols)}
        self._channels = frozenset(subscription.channels)
        self._groups: Codes = np.zeros(len(subscription.symbols), dtype=np.int32)
        if subscription.groups:
            self._groups[:] = subscription.groups
        self._routes: dict[bytes, int] = {
            f"{symbol.lower()}@{STREAMS[channel]}".encode(): _SHAPE_OF[channel, True] << _CODE_BITS | code
            for channel in subscription.channels
            for symbol, code in self._code_of.items()
        }
        self._openings: dict[bytes, int] = {}

    def learn(self, instruments: dict[str, Instrument]) -> None:
        """Use these currencies from the next `decode` on; symbols that they lack are guessed."""
        self._builder.learn(instruments)

    def decode(self, frames: Sequence[bytes], received_us: Times) -> Decoded:
        """Decode frames that arrived together; see `base.FrameDecoder`."""
        out = Decoded()
        if not frames:
            return out
        routes = np.fromiter(map(self._openings.get, map(_opening, frames), repeat(_UNKNOWN)), np.int32, len(frames))
        if routes.min() < 0:
            for at in np.flatnonzero(routes == _UNKNOWN).tolist():
                routes[at] = self._route(frames[at], int(received_us[at]), out)
            out.ignored += int(np.count_nonzero(routes == _IGNORED))
        # One stable sort by shape, then group: each shape is one run, and a batch splits into groups by slices.
        known = routes >= 0
        codes = np.where(known, routes & _CODE_MASK, 0).astype(np.int32)
        shapes = np.where(known, routes >> _CODE_BITS, -1)
        key = (shapes.astype(np.int64) << 32) + self._groups[codes]
        if (key[1:] < key[:-1]).any():
            order = np.argsort(key, kind="stable")
            frames = [frames[at] for at in order.tolist()]
            shapes, codes, received_us = shapes[order], codes[order], received_us[order]
        for shape in np.unique(shapes[[0, -1]] if shapes[0] == shapes[-1] else shapes).tolist():
            first, end = np.searchsorted(shapes, [shape, shape + 1]).tolist()
            if shape >= 0:
                self._decode_shape(
                    _SHAPES[shape], _Run(frames[first:end], codes[first:end], received_us[first:end]), out
                )
        return out

    def _route(self, frame: bytes, received_us: int, out: Decoded) -> int:
        """Tell what a frame is whose opening was not seen before, and remember the opening if it says it all."""
        end = frame.find(_QUOTE_MARK, _STREAM_AT)
        route = self._routes.get(frame[_STREAM_AT:end])
        if route is None:
            return self._look(frame, received_us, out)
        if 0 <= end < OPENING and len(self._openings) < _STREAMS_REMEMBERED:
            self._openings[_opening(frame)] = route
        return route

    def _look(self, frame: bytes, received_us: int, out: Decoded) -> int:
        """Tell what a frame is that the byte test did not know."""
        try:
            peek = _peek.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            out.dead.append(DeadFrame(bytes(frame), f"not a JSON object: {error}", received_us))
            return _DONE
        if peek.e == "serverShutdown" or (peek.stream is not None and "serverShutdown" in peek.stream):
            out.events.append(SHUTDOWN)
            return _DONE
        if peek.stream is not None:
            return self._look_at_stream(peek.stream)
        if peek.error is not None or peek.code is not None:
            out.dead.append(DeadFrame(bytes(frame), "the exchange answered with an error", received_us))
            return _DONE
        if peek.e is None and peek.u is None:
            if peek.result is not msgspec.UNSET:
                out.control += 1
                if isinstance(peek.result, list):
                    out.subscribed = len(peek.result)
            else:
                out.dead.append(DeadFrame(bytes(frame), "no channel has this shape", received_us))
            return _DONE
        channel = "quotes" if peek.e is None else _CHANNEL_OF_EVENT.get(peek.e)
        code = self._code_of.get(peek.s or "")
        if channel not in self._channels or code is None:
            return _IGNORED
        return _SHAPE_OF[channel, False] << _CODE_BITS | code

    def _look_at_stream(self, stream: str) -> int:
        name = stream.encode()
        route = self._routes.get(name)
        if route is None:
            route = _IGNORED
            if len(self._routes) < _STREAMS_REMEMBERED:
                self._routes[name] = route
        return route

    def _decode_shape(self, shape: _Shape, run: _Run, out: Decoded) -> None:
        try:
            rows = shape.read(run.frames)
        except (msgspec.DecodeError, UnicodeDecodeError):
            rows, run = _one_by_one(shape, run, out)
        ids, starts, keep = self._builder.cover(shape.channel, rows, run.codes)
        if keep is not None:
            out.ignored += int(np.count_nonzero(~keep))
            rows, run, ids, starts = _only(rows, keep), run.only(keep), ids[keep], starts[keep]
        batch = None
        if rows:
            try:
                batch = self._builder.build(shape.channel, rows, run.codes, run.received_us, ids, starts)
            except pa.ArrowInvalid:
                keep = _fitting(shape.channel, rows, run, out)
                rows, run, ids, starts = _only(rows, keep), run.only(keep), ids[keep], starts[keep]
                if rows:
                    batch = self._builder.build(shape.channel, rows, run.codes, run.received_us, ids, starts)
        if batch is not None:
            held = out.batches.get(shape.channel)
            out.batches[shape.channel] = batch if held is None else pa.concat_batches([held, batch])


def _only(rows: list[Any], keep: npt.NDArray[np.bool_]) -> list[Any]:
    return [rows[at] for at in np.flatnonzero(keep).tolist()]


def _one_by_one(shape: _Shape, run: _Run, out: Decoded) -> tuple[list[Any], _Run]:
    rows = []
    keep = np.ones(len(run.frames), dtype=np.bool_)
    for at, frame in enumerate(run.frames):
        try:
            rows += shape.read([frame])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            keep[at] = False
            out.dead.append(run.dead(at, f"not a frame of {shape.channel}: {error}"))
    return rows, run.only(keep)


def _fitting(channel: str, rows: list[Any], run: _Run, out: Decoded) -> npt.NDArray[np.bool_]:
    """Tell which rows' decimals fit; the others are dead, each with its field and value as the reason."""
    keep = np.ones(len(rows), dtype=np.bool_)
    for at, row in enumerate(rows):
        for name in DECIMALS[channel]:
            try:
                columns.decimals([getattr(row, name)])
            except pa.ArrowInvalid as error:
                keep[at] = False
                value = getattr(row, name)[:64]
                out.dead.append(run.dead(at, f"{name}={value!r} does not fit decimal(38,18): {error}"))
                break
    return keep
