"""The simulated exchange: the market's clock, and who gets which frames.

Trades happen whether or not anybody listens. Each tick asks the pacer how many are due, lets them happen, logs the
truth, and writes the blocks to the connections that subscribed to them; a block is encoded once for each form.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from k2ray.clock import Clock, SystemClock
from k2ray.errors import BadInput
from k2ray.sim.book import FAST_S, Books
from k2ray.sim.certificates import ensure_certificates
from k2ray.sim.connection import Connection
from k2ray.sim.faults import alter, read_request
from k2ray.sim.frames import Encoder, Form, split_frames, text_frame
from k2ray.sim.history import History
from k2ray.sim.http import HttpRequest, HttpResponse
from k2ray.sim.injection import Injector
from k2ray.sim.market import CHANNELS, Block, Channel, Market
from k2ray.sim.pacing import BurstPacer, EvenPacer, Pacer
from k2ray.sim.rest import MarketRest, answer_json, refuse
from k2ray.sim.server import Server
from k2ray.sim.settings import Address, SimSettings
from k2ray.sim.truth import Mark, TruthLog
from k2ray.sim.weights import Weights, weight_of

FAULTS_REMEMBERED = 1000


class SimulatedExchange:
    """A market behind a TLS port. `start` it, then `stop` it: that finishes the truth.

    Args:
        settings: What it is told.
        clock: Where its times come from.
    """

    def __init__(self, settings: SimSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self._clock = clock or SystemClock()
        self.market = Market(
            settings.seed,
            settings.symbols,
            quotes_per_trade=settings.quotes_per_trade,
            first_id=settings.first_id,
        )
        self._channels = frozenset(CHANNELS[name] for name in settings.channels)
        self._histories = [History() for _ in self.market.symbols]
        self._books = Books(self.market, settings.depth_updates_per_s)
        self._rest = MarketRest(self.market, self._histories, self._books, self.now_us)
        self._weights = Weights(settings.limits.weight_per_min, settings.limits.ban_s)
        self._encoder = Encoder(self.market)
        self._marks: list[Mark] = []
        self._wants: dict[int, frozenset[tuple[Channel, int]]] = {}
        self._truth = TruthLog(settings.truth, self.market) if settings.truth is not None else None
        self._certificates = ensure_certificates(settings.ca_dir)
        self.server = Server(self._answer, self._subscribed, self._certificates, settings.limits, self.now_us)
        self._injector = Injector(self.market, self._histories, self.server, self._weights, self._clock)
        self._faults = self._injector.plan
        self._pacer: Pacer = BurstPacer(settings.rate, settings.seed) if settings.burst else EvenPacer(settings.rate)
        self._happened_us = 0
        self._running: asyncio.Task[None] | None = None
        self._booking: asyncio.Task[None] | None = None
        self._write_lock = asyncio.Lock()

    async def start(self) -> Address:
        """Listen, let the market begin, and return where."""
        port = await self.server.start(self.settings.host, self.settings.port)
        self._running = asyncio.get_running_loop().create_task(self._run())
        self._booking = asyncio.get_running_loop().create_task(self._run_books())
        return Address(
            ws_url=f"wss://{self.settings.host}:{port}",
            rest_url=f"https://{self.settings.host}:{port}",
            ca_file=str(self._certificates.ca),
            port=port,
            pid=os.getpid(),
            crl_file=str(self._certificates.crl),
        )

    async def stop(self) -> None:
        """End the market, the connections and the truth's file."""
        tasks = [task for task in (self._running, self._booking) if task is not None]
        self._running = self._booking = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.server.stop()
        if self._truth is not None:
            async with self._write_lock:
                await asyncio.to_thread(self._truth.finish)
            self._truth = None

    def now_us(self) -> int:
        """Return what the exchange's clock says."""
        return self._clock.now_us() + self._injector.step_us

    @property
    def generating(self) -> bool:
        """Return whether trades still happen."""
        return self._running is not None and not self._running.done()

    def state(self) -> dict[str, Any]:
        """Return the counters: what `GET /_sim/state` answers."""
        generated: dict[str, Any] = {}
        for index, symbol in enumerate(self.market.symbols):
            generated[symbol.name] = {"epoch": symbol.epoch}
            for channel in sorted(self._channels):
                done = symbol.done[channel]
                first, last = self._first_last(channel, index, symbol.epoch, 0, done)
                generated[symbol.name][channel.stream] = {"count": done, "first_id": first, "last_id": last}
        return {
            "generated": generated,
            "trades": self.market.trades,
            "forgiven_trades": self._pacer.forgiven,
            "generating": self.generating,
            "connections": {
                str(connection.number): {
                    "streams": list(connection.streams),
                    "frames_sent": dict(connection.frames_sent),
                    "frames_missed": connection.frames_missed,
                    "waiting_bytes": connection.waiting_bytes,
                    "half_open": connection.half_open,
                    "age_s": connection.age_s,
                }
                for connection in self.server.websockets()
            },
            "counters": dict(self.server.counters),
            "faults": self._injector.requests[-FAULTS_REMEMBERED:],
            "altered": [self._describe(mark) for mark in self._marks[-FAULTS_REMEMBERED:]],
        }

    # -- the market's clock

    async def _run(self) -> None:
        """Let trades happen until told otherwise."""
        begun = self._clock.monotonic_s()
        settings = self.settings
        while True:
            elapsed = self._clock.monotonic_s() - begun
            over = settings.seconds is not None and elapsed >= settings.seconds
            due = self._pacer.due(elapsed if settings.seconds is None else min(elapsed, settings.seconds))
            if settings.frames is not None:
                due = min(due, settings.frames - self.market.trades)
                over = over or self.market.trades + due >= settings.frames
            if due > 0:
                self._tick(due)
            if over:
                return
            await asyncio.sleep(self._pacer.pause_s(self._clock.monotonic_s() - begun))

    def _tick(self, trades: int) -> None:
        # The machine's clock may step back; an exchange's times do so only on request.
        self._happened_us = max(self._happened_us, self._clock.now_us())
        event_us = self._happened_us + self._injector.step_us
        blocks = self.market.advance(trades, event_us)
        for block in blocks:
            if block.channel is Channel.TRADE:
                self._histories[block.symbol].append(block.first, block.count, event_us, self._happened_us)
        blocks = [block for block in blocks if block.channel in self._channels]
        if self._truth is not None:
            for block in blocks:
                self._truth.append(block)
        connections = self.server.websockets()
        if not connections:
            return
        if self._faults:
            self._send_with_faults(connections, blocks)
        else:
            self._send(connections, blocks)

    async def _run_books(self) -> None:
        """Tell subscribers what changed in the books, ten times a second."""
        begun = self._clock.monotonic_s()
        while True:
            await asyncio.sleep(FAST_S)
            events = self._books.tick(self._clock.monotonic_s() - begun, self.now_us())
            for connection in self.server.websockets():
                for event in events:
                    if event.stream in connection.streams:
                        frame = text_frame(self._books.encode(event, connection.form))
                        connection.send(frame, Counter({"depth": 1}))

    def _send(self, connections: Sequence[Connection], blocks: Sequence[Block]) -> None:
        encoded: dict[tuple[int, Form], bytes | bytearray] = {}
        for connection in connections:
            wants = self._wants.get(connection.number)
            if not wants:
                continue
            pieces: list[bytes | bytearray] = []
            frames: Counter[str] = Counter()
            for number, block in enumerate(blocks):
                if (block.channel, block.symbol) not in wants:
                    continue
                key = (number, connection.form)
                piece = encoded.get(key)
                if piece is None:
                    piece = encoded[key] = self._encoder.encode(block, connection.form)
                pieces.append(piece)
                frames[block.channel.stream] += block.count
            if pieces:
                connection.send(b"".join(pieces) if len(pieces) > 1 else pieces[0], frames)

    def _send_with_faults(self, connections: Sequence[Connection], blocks: Sequence[Block]) -> None:
        """Send block by block while a frame fault waits; slower, but faults are few."""
        for block in blocks:
            wanted = (block.channel, block.symbol)
            listeners = {c.number: c for c in connections if wanted in self._wants.get(c.number, ())}
            symbol = self.market.symbols[block.symbol].name
            alterations, marks = self._faults.apply(block, symbol, set(listeners))
            for mark in marks:
                self._marks.append(mark)
                if self._truth is not None:
                    self._truth.mark(mark)
            for connection in listeners.values():
                if not alterations:
                    self._send([connection], [block])
                    continue
                payloads = split_frames(self._encoder.encode(block, connection.form))
                data, count, ends = alter(payloads, alterations, connection.number)
                if ends:
                    connection.finish(data)
                elif data:
                    connection.send(data, Counter({block.channel.stream: count}))

    def _subscribed(self, connection: Connection) -> None:
        """Find out which channels and symbols a connection's streams stand for; unknown ones stay silent."""
        wants: set[tuple[Channel, int]] = set()
        for name in connection.streams:
            symbol, _, stream = name.partition("@")
            channel, index = CHANNELS.get(stream), self.market.index.get(symbol.upper())
            if channel is not None and index is not None and symbol == symbol.lower():
                wants.add((channel, index))
        self._wants = {number: known for number, known in self._wants.items() if number in self.server.connections}
        self._wants[connection.number] = frozenset(wants)

    # -- requests

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        if not request.path.startswith("/_sim/"):
            return self._answer_rest(request)
        try:
            match (request.method, request.path):
                case ("GET", "/_sim/state"):
                    return answer_json(self.state())
                case ("POST", "/_sim/fault"):
                    return answer_json({"ok": True, **self._injector.inject(read_request(request.body))})
                case ("POST", "/_sim/truth"):
                    return await self._write_truth(request.body)
                case _:
                    return refuse(-1, "no such path", 404)
        except BadInput as error:
            return refuse(-1100, str(error))

    def _answer_rest(self, request: HttpRequest) -> HttpResponse:
        """Answer a question if its sender may still ask."""
        charge = self._weights.charge(request.peer, weight_of(request.path, request.query), time.monotonic())
        used = [("x-mbx-used-weight", str(charge.used)), ("x-mbx-used-weight-1m", str(charge.used))]
        if charge.status is not None:
            self.server.counters[f"rest_{charge.status}"] += 1
            answer = refuse(-1003, "Too much request weight used.", charge.status)
            return replace(answer, headers=[*used, ("retry-after", str(charge.retry_after_s))])
        if self.settings.history_s is not None:
            horizon_us = self._clock.now_us() - round(self.settings.history_s * 1_000_000)
            for history in self._histories:
                history.forget_before(horizon_us)
        return replace(self._rest.answer(request), headers=used)

    async def _write_truth(self, body: bytes) -> HttpResponse:
        """Write the truth until now; `{"path": ...}` names another file than `--truth`."""
        if self._truth is None:
            raise BadInput("started without a truth file")
        try:
            wanted = msgspec.json.decode(body or b"{}", type=dict[str, str])
        except msgspec.DecodeError as error:
            raise BadInput(str(error)) from None
        path = Path(wanted["path"]) if "path" in wanted else self._truth.file
        async with self._write_lock:
            truth = self._truth
            truth.sync()
            rows = await asyncio.to_thread(truth.write, path)
        return answer_json({"rows": rows, "path": str(path)})

    def _describe(self, mark: Mark) -> dict[str, Any]:
        first, last = self._first_last(mark.channel, mark.symbol, mark.epoch, mark.first, mark.end)
        return {
            "fault": mark.fault,
            "channel": mark.channel.stream,
            "symbol": self.market.symbols[mark.symbol].name,
            "epoch": mark.epoch,
            "first_id": first,
            "last_id": last,
            "connection": mark.connection,
        }

    def _first_last(
        self, channel: Channel, symbol: int, epoch: int, first: int, end: int
    ) -> tuple[int | None, int | None]:
        if end <= first:
            return None, None
        ids = self.market.ids(channel, symbol, epoch, np.array([first, end - 1], dtype=np.int64))
        return int(ids[0]), int(ids[1])
