"""What a simulated exchange is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from k2ray.sim.certificates import default_folder
from k2ray.sim.limits import Limits
from k2ray.sim.market import STREAMS

DEFAULT_SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT")


@dataclass(frozen=True)
class SimSettings:
    """Arguments of the simulator.

    Attributes:
        host, port: Where to listen; port 0 takes a free one.
        rate: Trades per second, over all symbols together (each symbol gets the same share). Every trade is one
            `@trade` frame; on top of these come about 0.63 `@aggTrade` and `quotes_per_trade` `@bookTicker` frames a
            trade. Only subscribed frames are sent.
        seed: What the market's content follows from.
        symbols: Which symbols there are.
        channels: Which streams exist: others are neither sent nor part of the truth.
        quotes_per_trade: See `rate`.
        first_id: First trade id (and `a` and `u`) of every symbol; None: ten-digit numbers that differ by symbol.
        burst: Poisson arrivals with bursts instead of an even flow.
        seconds, frames: Stop generating after that long, or that many trades; the server goes on.
        truth: Where to write the truth.
        ca_dir: The certificates' folder.
        replay: Send this file's recorded frames instead of a market; `speed` times as fast (0: at once), `loop`: for
            ever.
        limits: How clients are treated.
        depth_updates_per_s: How many levels of each symbol's order book change in a second.
        history_s: REST has forgotten trades that are older; None: it knows them all.
    """

    host: str = "127.0.0.1"
    port: int = 0
    rate: float = 100.0
    seed: int = 1
    symbols: tuple[str, ...] = DEFAULT_SYMBOLS
    channels: tuple[str, ...] = tuple(STREAMS.values())
    quotes_per_trade: float = 1.0
    first_id: int | None = None
    burst: bool = False
    seconds: float | None = None
    frames: int | None = None
    truth: Path | None = None
    ca_dir: Path = field(default_factory=default_folder)
    replay: Path | None = None
    speed: float = 1.0
    loop: bool = False
    limits: Limits = field(default_factory=Limits)
    depth_updates_per_s: float = 50.0
    history_s: float | None = None


@dataclass(frozen=True)
class Address:
    """Where a running simulator is found; the command prints it as one JSON line."""

    ws_url: str
    rest_url: str
    ca_file: str
    port: int
    pid: int
    crl_file: str = ""
