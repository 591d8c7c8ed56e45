"""Recorded frames instead of a market: each goes, as it was, to whoever subscribed to its stream.

A file holds a JSON object a line: `received` (unix seconds) and `frame` (the text as it came on a combined stream). A
frame of a raw stream has no stream name; it is found by event type and symbol. The first subscription starts the
replay, so that nothing is sent to nobody; `POST /_sim/replay` starts it anew, from the beginning.
"""

from __future__ import annotations

import asyncio
import gzip
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from k2ray.clock import SystemClock
from k2ray.errors import BadInput
from k2ray.sim.certificates import ensure_certificates
from k2ray.sim.connection import Connection
from k2ray.sim.faults import CONNECTION_FAULTS, read_request
from k2ray.sim.frames import text_frame
from k2ray.sim.http import HttpRequest, HttpResponse
from k2ray.sim.market import STREAMS
from k2ray.sim.rest import answer_info, answer_json, answer_time, refuse
from k2ray.sim.server import Server
from k2ray.sim.settings import Address, SimSettings

SETTLE_S = 0.2
"""After the first subscription, so that a client's second connection or request is in time too."""


class _Line(msgspec.Struct):
    received: float
    frame: str = ""


class _Combined(msgspec.Struct):
    stream: str
    data: msgspec.Raw


class _Event(msgspec.Struct):
    symbol: str = msgspec.field(name="s", default="")
    event: str = msgspec.field(name="e", default="bookTicker")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded frame.

    Attributes:
        after_s: Seconds after the file's first frame.
        stream: Its stream's name, and the part after the `@`, which counts it.
        combined, raw: The whole WebSocket frame, in both forms.
    """

    after_s: float
    stream: str
    kind: str
    combined: bytes
    raw: bytes


def read_recording(file: Path) -> list[Recorded]:
    """Read a recording; what is no frame of a stream (an answer to a request) is left out.

    Raises:
        BadInput: A line cannot be read; the message has its number.
    """
    opened = gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")
    frames: list[Recorded] = []
    began: float | None = None
    with opened as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry = msgspec.json.decode(line, type=_Line)
            except msgspec.DecodeError as error:
                raise BadInput(f"{file}, line {number}: {error}") from None
            began = entry.received if began is None else began
            frame = _read_frame(entry.frame.encode(), entry.received - began)
            if frame is not None:
                frames.append(frame)
    return frames


def _read_frame(text: bytes, after_s: float) -> Recorded | None:
    try:
        whole = msgspec.json.decode(text, type=_Combined)
        return Recorded(
            after_s, whole.stream, whole.stream.partition("@")[2], text_frame(text), text_frame(bytes(whole.data))
        )
    except msgspec.DecodeError:
        pass
    try:
        event = msgspec.json.decode(text, type=_Event)
    except msgspec.DecodeError:
        return None
    if not event.symbol or event.event not in STREAMS.values():
        return None
    stream = f"{event.symbol.lower()}@{event.event}"
    wrapped = b'{"stream":' + msgspec.json.encode(stream) + b',"data":' + text + b"}"
    return Recorded(after_s, stream, event.event, text_frame(wrapped), text_frame(text))


class ReplayExchange:
    """Recorded frames behind a TLS port.

    Args:
        settings: What it is told; `replay` names the file.
    """

    def __init__(self, settings: SimSettings) -> None:
        assert settings.replay is not None
        self.settings = settings
        self.frames = read_recording(settings.replay)
        self.symbols = sorted({frame.stream.partition("@")[0].upper() for frame in self.frames})
        self._certificates = ensure_certificates(settings.ca_dir)
        self.server = Server(self._answer, self._subscribed, self._certificates, settings.limits, SystemClock().now_us)
        self._sent: Counter[str] = Counter()
        self._unheard: Counter[str] = Counter()
        self._passes = 0
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> Address:
        """Listen and return where; the first subscription starts the frames."""
        host = self.settings.host
        port = await self.server.start(host, self.settings.port)
        files = self._certificates
        return Address(
            f"wss://{host}:{port}", f"https://{host}:{port}", str(files.ca), port, os.getpid(), str(files.crl)
        )

    async def stop(self) -> None:
        """End the replay and the connections."""
        await self._halt()
        await self.server.stop()

    def state(self) -> dict[str, Any]:
        """Return the counters."""
        return {
            "recorded": dict(Counter(frame.kind for frame in self.frames)),
            "trades": self._sent.total(),
            "sent": dict(self._sent),
            "unheard": dict(self._unheard),
            "passes": self._passes,
            "generating": self._running is not None and not self._running.done(),
            "connections": {
                str(connection.number): {
                    "streams": list(connection.streams),
                    "frames_sent": dict(connection.frames_sent),
                }
                for connection in self.server.websockets()
            },
            "counters": dict(self.server.counters),
        }

    def _subscribed(self, connection: Connection) -> None:
        if connection.streams and self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run())

    async def _halt(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(SETTLE_S)
        while True:
            began = loop.time()
            for number, frame in enumerate(self.frames):
                if self.settings.speed:
                    pause = frame.after_s / self.settings.speed - (loop.time() - began)
                    if pause > 0:
                        await asyncio.sleep(pause)
                elif number % 100 == 0:
                    await asyncio.sleep(0)
                self._send(frame)
            self._passes += 1
            if not self.settings.loop or not self.frames:
                return
            await asyncio.sleep(0.001)

    def _send(self, frame: Recorded) -> None:
        heard = False
        for connection in self.server.websockets():
            if frame.stream in connection.streams:
                connection.send(frame.combined if connection.form.combined else frame.raw, Counter({frame.kind: 1}))
                heard = True
        (self._sent if heard else self._unheard)[frame.kind] += 1

    async def _answer(self, request: HttpRequest) -> HttpResponse:
        try:
            match (request.method, request.path):
                case ("GET", "/api/v3/ping"):
                    return answer_json({})
                case ("GET", "/api/v3/time"):
                    return answer_time(request)
                case ("GET", "/api/v3/exchangeInfo"):
                    return answer_info(self.symbols, request.query)
                case ("GET", "/_sim/state"):
                    return answer_json(self.state())
                case ("POST", "/_sim/replay"):
                    await self._halt()
                    self._running = asyncio.get_running_loop().create_task(self._run())
                    return answer_json({"ok": True})
                case ("POST", "/_sim/fault"):
                    return self._fault(request.body)
                case _:
                    return refuse(-1, "not answered in a replay", 404)
        except BadInput as error:
            return refuse(-1100, str(error))

    def _fault(self, body: bytes) -> HttpResponse:
        request = read_request(body)
        if request.fault not in CONNECTION_FAULTS:
            raise BadInput(f"fault: a replay can only do {', '.join(CONNECTION_FAULTS)}")
        disturbed = [c for c in self.server.websockets() if request.connection in (None, c.number)]
        for connection in disturbed:
            connection.disturb(request.fault, seconds=request.seconds, abort=request.how == "abort", code=request.code)
        return answer_json({"ok": True, "connections": [connection.number for connection in disturbed]})
