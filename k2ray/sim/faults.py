"""Faults on request: which frames go wrong, and how. Pure; `exchange.py` carries out what concerns connections.

A frame fault waits until a subscribed frame of its channel (and symbol, if named) comes by, then alters the next
`count` of them, for all clients or for one connection. What was altered is marked in the truth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from k2ray.errors import BadInput
from k2ray.sim.frames import text_frame
from k2ray.sim.market import Block
from k2ray.sim.truth import Mark

FRAME_FAULTS = ("malformed", "truncated", "oversized", "duplicate", "reorder", "id_gap")
CONNECTION_FAULTS = ("close", "half_open", "delay", "server_shutdown")
OTHER_FAULTS = ("id_reset", "wrong_certificate", "clock_step", "history_gone", "rest_refuse", "outage", "clear")
FAULTS = (*FRAME_FAULTS, *CONNECTION_FAULTS, *OTHER_FAULTS)

MALFORMATIONS = ("json", "price", "missing", "utf8")
CERTIFICATES = ("other_host", "untrusted", "expired", "self_signed", "revoked", "revoked_ca", "right")
REFUSALS = (429, 418)
OVERSIZE_BYTES = 6_291_456
"""Above the feed's default limit of 4 MiB."""


class FaultRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /_sim/fault`.

    Attributes:
        fault: One of `FAULTS`.
        count: Frames that a frame fault alters. `reorder` sends that many in reverse order (2 at least).
        connection: Number of one connection (see `GET /_sim/state`); null: all.
        symbol: Only this symbol's frames; `id_reset` and `history_gone` with null concern all symbols.
        channel: Whose frames: trade, aggTrade or bookTicker.
        seconds: `delay`: how long everything is held back. `half_open`, `wrong_certificate`: null for good.
            `server_shutdown`: the announced end comes after so long; null: never. `clock_step`: how far the exchange's
            times jump, either way. `rest_refuse`: how long. `outage`: how long nobody listens.
        size: `oversized`: the frame's bytes.
        how: `malformed`: json (broken JSON), price (not a number), missing (no price), utf8 (bytes that are no text).
            `truncated`: json (a whole frame with half the text), socket (TCP ends amid the frame).
            `close`: frame (a close frame), abort (TCP reset). `wrong_certificate`: one of `CERTIFICATES`.
        code: `close`: the close code. `rest_refuse`: 429 or 418.
    """

    fault: str
    count: int = 1
    connection: int | None = None
    symbol: str | None = None
    channel: str = "trade"
    seconds: float | None = None
    size: int = OVERSIZE_BYTES
    how: str | None = None
    code: int = 1001


def read_request(body: bytes) -> FaultRequest:
    """Read and check a request.

    Raises:
        BadInput: It is not one; the message says why. Answer 400.
    """
    try:
        request = msgspec.json.decode(body, type=FaultRequest)
    except msgspec.DecodeError as error:
        raise BadInput(str(error)) from None
    allowed = {
        "malformed": MALFORMATIONS,
        "truncated": ("json", "socket"),
        "close": ("frame", "abort"),
        "wrong_certificate": CERTIFICATES,
    }.get(request.fault, ())
    if request.fault not in FAULTS:
        raise BadInput(f"fault: {request.fault!r} is none of {', '.join(FAULTS)}")
    if request.how is not None and request.how not in allowed:
        raise BadInput(f"how: {request.how!r} is none of {', '.join(allowed) or '(nothing)'}")
    if request.count < 1 or (request.fault == "reorder" and request.count < 2):
        raise BadInput("count: too small")
    if request.fault in ("delay", "clock_step", "rest_refuse", "outage") and not request.seconds:
        raise BadInput(f"seconds: {request.fault} needs them")
    if request.fault != "clock_step" and (request.seconds or 0) < 0:
        raise BadInput("seconds: less than none")
    if request.fault == "rest_refuse" and request.code not in REFUSALS:
        raise BadInput(f"code: {request.code} is none of {', '.join(map(str, REFUSALS))}")
    return request


@dataclass
class FrameFault:
    """A frame fault that is not used up.

    Attributes:
        held: `reorder`: frames that wait for the rest, by connection.
    """

    request: FaultRequest
    left: int
    held: defaultdict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Alteration:
    """What happens to rows [first, end) of one block; `completes` when the fault is used up with them."""

    fault: FrameFault
    first: int
    end: int
    completes: bool


class FaultPlan:
    """The frame faults that wait for their frames."""

    def __init__(self) -> None:
        self._waiting: list[FrameFault] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, request: FaultRequest) -> None:
        """Let a frame fault wait for its frames."""
        self._waiting.append(FrameFault(request, request.count))

    def clear(self) -> None:
        """Forget all that wait."""
        self._waiting.clear()

    def apply(self, block: Block, symbol: str, listeners: set[int]) -> tuple[list[Alteration], list[Mark]]:
        """Return what happens to a block that is about to be sent, and use the faults up.

        Each fault gets rows of its own, so that as many frames are altered as were asked for.

        Args:
            block: What is sent.
            symbol: Its symbol's name.
            listeners: Connections that it is sent to.
        """
        alterations: list[Alteration] = []
        marks: list[Mark] = []
        taken = 0
        for fault in list(self._waiting):
            request = fault.request
            wanted = {request.connection} & listeners if request.connection is not None else listeners
            if not wanted or request.channel != block.channel.stream or request.symbol not in (None, symbol):
                continue
            count = min(fault.left, block.count - taken)
            if not count:
                break
            fault.left -= count
            alterations.append(Alteration(fault, taken, taken + count, completes=fault.left == 0))
            first, taken = block.first + taken, taken + count
            end = block.first + taken
            marks.append(Mark(request.fault, block.channel, block.symbol, block.epoch, first, end, request.connection))
            if fault.left == 0:
                self._waiting.remove(fault)
        return alterations, marks


def alter(payloads: Sequence[bytes], alterations: Sequence[Alteration], connection: int) -> tuple[bytes, int, bool]:
    """Return what one connection gets instead of `payloads`: bytes, how many frames, whether TCP ends after them."""
    rows: list[list[bytes]] = [[payload] for payload in payloads]
    for alteration in alterations:
        request = alteration.fault.request
        if request.connection not in (None, connection):
            continue
        span = range(alteration.first, alteration.end)
        if request.fault == "reorder":
            held = alteration.fault.held[connection]
            for row in span:
                held.extend(rows[row])
                rows[row] = []
            if alteration.completes:
                rows[alteration.end - 1] = held[::-1]
                alteration.fault.held.pop(connection)
            continue
        for row in span:
            rows[row] = [new for old in rows[row] for new in _altered(old, request)]
            if request.fault == "truncated" and request.how == "socket":
                frames = [text_frame(payload) for earlier in rows[: row + 1] for payload in earlier]
                frames[-1] = frames[-1][: len(frames[-1]) // 2]
                return b"".join(frames), len(frames) - 1, True
    frames = [text_frame(payload) for row in rows for payload in row]
    return b"".join(frames), len(frames), False


def _altered(payload: bytes, request: FaultRequest) -> list[bytes]:
    match request.fault:
        case "id_gap":
            return []
        case "duplicate":
            return [payload, payload]
        case "oversized":
            return [payload + b" " * max(0, request.size - len(payload))]
        case "truncated":
            return [payload] if request.how == "socket" else [payload[: len(payload) // 2]]
        case _:
            return [_malformed(payload, request.how or "json")]


def _malformed(payload: bytes, how: str) -> bytes:
    key = b'"p":"' if b'"p":"' in payload else b'"b":"'
    match how:
        case "price":
            return payload.replace(key, key + b"x", 1)
        case "missing":
            return payload.replace(key, b'"_":"', 1)
        case "utf8":
            return payload.replace(key, key + b"\xff\xfe", 1)
        case _:
            return payload.replace(b":", b";", 1)
