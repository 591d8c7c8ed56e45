"""Carries out faults on a market and its server. What a request may say is `faults.py`'s."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from k2ray.clock import Clock
from k2ray.errors import BadInput
from k2ray.sim.connection import Connection
from k2ray.sim.faults import CONNECTION_FAULTS, FRAME_FAULTS, FaultPlan, FaultRequest
from k2ray.sim.history import History
from k2ray.sim.market import CHANNELS, Market
from k2ray.sim.server import Server
from k2ray.sim.weights import Weights


class Injector:
    """Lets things go wrong.

    Args:
        market: Whose ids start anew.
        histories: What REST remembers, by symbol.
        server: Whose connections and certificates go wrong.
        weights: Who is refused.
        clock: The machine's.

    Attributes:
        plan: Frame faults that wait for their frames.
        requests: What was asked for, oldest first.
        step_us: How far the exchange's clock is from the machine's.
    """

    def __init__(
        self, market: Market, histories: Sequence[History], server: Server, weights: Weights, clock: Clock
    ) -> None:
        self._market = market
        self._histories = histories
        self._server = server
        self._weights = weights
        self._clock = clock
        self.plan = FaultPlan()
        self.requests: list[dict[str, Any]] = []
        self.step_us = 0

    def inject(self, request: FaultRequest) -> dict[str, Any]:
        """Let something go wrong and return what it concerned.

        Raises:
            BadInput: It names a symbol, channel or connection that is not there.
        """
        if request.symbol is not None and request.symbol not in self._market.index:
            raise BadInput(f"symbol: {request.symbol!r} is none of {', '.join(self._market.index)}")
        if request.channel not in CHANNELS:
            raise BadInput(f"channel: {request.channel!r} is none of {', '.join(CHANNELS)}")
        if request.fault in FRAME_FAULTS:
            self._connections(request)
            self.plan.add(request)
            about: dict[str, Any] = {}
        elif request.fault in CONNECTION_FAULTS:
            about = self._disturb(self._connections(request), request)
        else:
            about = self._break(request)
        self.requests.append({"at_us": self._clock.now_us(), **msgspec.to_builtins(request), **about})
        return about

    def _connections(self, request: FaultRequest) -> list[Connection]:
        connections = self._server.websockets()
        if request.connection is None:
            return connections
        named = [connection for connection in connections if connection.number == request.connection]
        if not named:
            raise BadInput(f"connection: there is no WebSocket connection {request.connection}")
        return named

    def _disturb(self, connections: Sequence[Connection], request: FaultRequest) -> dict[str, Any]:
        for connection in connections:
            connection.disturb(request.fault, seconds=request.seconds, abort=request.how == "abort", code=request.code)
        return {"connections": [connection.number for connection in connections]}

    def _break(self, request: FaultRequest) -> dict[str, Any]:
        names = [request.symbol] if request.symbol is not None else list(self._market.index)
        seconds = request.seconds or 0.0
        match request.fault:
            case "id_reset":
                epochs = {name: self._market.reset_ids(name) for name in names}
                for name in names:
                    self._histories[self._market.index[name]].clear()
                return {"epochs": epochs}
            case "history_gone":
                for name in names:
                    self._histories[self._market.index[name]].forget()
                return {"symbols": names}
            case "clock_step":
                self.step_us += round(seconds * 1_000_000)
                return {"step_us": self.step_us}
            case "rest_refuse":
                self._weights.refuse(request.code, time.monotonic() + seconds)
            case "outage":
                self._server.go_away(seconds)
            case "wrong_certificate":
                self._server.use_certificate(request.how or "other_host")
                if request.seconds is not None:
                    asyncio.get_running_loop().call_later(seconds, self._server.use_certificate, "right")
            case _:
                self.plan.clear()
                self.step_us = 0
                self._weights.forgive()
                self._server.use_certificate("right")
        return {}
