"""`k2ray sim`: run a simulated exchange until SIGTERM or SIGINT.

Prints one JSON line with its addresses when it is ready; on a terminal live counters follow. Imports no Ray.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

if TYPE_CHECKING:
    from k2ray.sim.settings import Address, SimSettings


class _Exchange(Protocol):
    async def start(self) -> Address: ...

    async def stop(self) -> None: ...

    def state(self) -> dict[str, object]: ...


def sim(
    port: int = typer.Option(0, help="Port to listen on; 0 takes a free one."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on (the certificate names localhost and 127.0.0.1)."),
    rate: float = typer.Option(
        100.0,
        min=0.01,
        help="Trades a second over all symbols, shared evenly: as many @trade frames, and on top of them about 0.63"
        " @aggTrade and --quotes @bookTicker frames a trade, each sent only to those who subscribed.",
    ),
    quotes: float = typer.Option(1.0, min=0.0, help="Quotes (@bookTicker) a trade."),
    seed: int = typer.Option(1, help="Prices, sizes, order of symbols and all ids follow from it."),
    symbols: str = typer.Option("BTCUSDT,ETHUSDT,BNBUSDT", help="Comma-separated, upper case."),
    channels: str = typer.Option("trade,aggTrade,bookTicker", help="Streams that exist; others are never generated."),
    first_id: int | None = typer.Option(None, min=1, help="First id of every symbol; default: ten-digit numbers."),
    truth: Path | None = typer.Option(None, help="Parquet file that gets exactly what was generated."),
    ca_dir: Path | None = typer.Option(None, help="Folder of the CA and certificates; made on first use."),
    burst: bool = typer.Option(False, help="Poisson bursts instead of an even flow."),
    seconds: float | None = typer.Option(None, help="Stop generating after this long; the server stays up."),
    frames: int | None = typer.Option(None, help="Stop generating after this many trades; the server stays up."),
    replay: Path | None = typer.Option(None, help="Send this file's recorded frames (.jsonl or .jsonl.gz) instead."),
    speed: float = typer.Option(1.0, min=0.0, help="Replay this many times as fast; 0: at once."),
    loop: bool = typer.Option(False, help="Replay for ever."),
    client_buffer_bytes: int = typer.Option(67_108_864, help="A slow client with more than this waiting is dropped."),
    ping_interval_s: float = typer.Option(20.0, help="Between two pings."),
    pong_timeout_s: float = typer.Option(60.0, help="A client that does not pong within it is dropped."),
    lifetime_s: float = typer.Option(86_400.0, min=0.1, help="A WebSocket older than this is closed: the 24 h cut."),
    shutdown_notice_s: float = typer.Option(
        0.0, min=0, help="Send `serverShutdown` so long before the cut; 0: cut without notice."
    ),
    messages_per_s: int = typer.Option(5, min=1, help="A client that sends more WebSocket messages is disconnected."),
    connects_per_5_min: int = typer.Option(300, min=1, help="WebSockets that an address may open in five minutes."),
    streams: int = typer.Option(1024, min=1, help="Streams that a connection may subscribe to."),
    weight_per_min: int = typer.Option(6000, min=1, help="Request weight before REST answers 429 with Retry-After."),
    ban_s: float = typer.Option(120.0, min=0.1, help="First ban (418) of an address that goes on after a 429."),
    depth_updates_per_s: float = typer.Option(50.0, min=0, help="Changed levels of each order book (@depth) a second."),
    history_s: float | None = typer.Option(None, min=0, help="REST knows no trades older than this. Default: all."),
) -> None:
    """Run a simulated exchange: Binance Spot's public protocol over TLS, deterministic, with its truth written down."""
    from k2ray.sim.certificates import default_folder
    from k2ray.sim.limits import Limits
    from k2ray.sim.market import CHANNELS
    from k2ray.sim.settings import SimSettings

    names = tuple(name.strip() for name in channels.split(",") if name.strip())
    if not names or not set(names) <= set(CHANNELS):
        raise typer.BadParameter(f"--channels: any of {', '.join(CHANNELS)}")
    wanted = tuple(dict.fromkeys(name.strip().upper() for name in symbols.split(",") if name.strip()))
    if not wanted:
        raise typer.BadParameter("--symbols: name at least one")
    if replay is not None and not replay.is_file():
        raise typer.BadParameter(f"--replay: there is no file {replay}")
    settings = SimSettings(
        host=host,
        port=port,
        rate=rate,
        seed=seed,
        symbols=wanted,
        channels=names,
        quotes_per_trade=quotes,
        first_id=first_id,
        burst=burst,
        seconds=seconds,
        frames=frames,
        truth=truth,
        ca_dir=ca_dir or default_folder(),
        replay=replay,
        speed=speed,
        loop=loop,
        limits=Limits(
            ping_interval_s=ping_interval_s,
            pong_timeout_s=pong_timeout_s,
            client_buffer_bytes=client_buffer_bytes,
            lifetime_s=lifetime_s,
            shutdown_notice_s=shutdown_notice_s,
            messages_per_s=messages_per_s,
            connects_per_5_min=connects_per_5_min,
            streams=streams,
            weight_per_min=weight_per_min,
            ban_s=ban_s,
        ),
        depth_updates_per_s=depth_updates_per_s,
        history_s=history_s,
    )
    asyncio.run(_serve(settings))


async def _serve(settings: SimSettings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    exchange = _make(settings)
    address = await exchange.start()
    # Templates and tapes live as long as the process: not looking through them again saves a pause in each collection.
    gc.freeze()
    typer.echo(json.dumps(dataclasses.asdict(address)))
    sys.stdout.flush()
    watching = asyncio.create_task(_watch(exchange)) if sys.stdout.isatty() else None
    try:
        await stopping.wait()
    finally:
        if watching is not None:
            watching.cancel()
        await exchange.stop()


def _make(settings: SimSettings) -> _Exchange:
    if settings.replay is not None:
        from k2ray.sim.replay import ReplayExchange

        return ReplayExchange(settings)
    from k2ray.sim.exchange import SimulatedExchange

    return SimulatedExchange(settings)


async def _watch(exchange: _Exchange) -> None:
    """Show counters once a second, in place."""
    before, at = 0, time.monotonic()
    while True:
        await asyncio.sleep(1)
        state = exchange.state()
        trades, now = state["trades"], time.monotonic()
        connections = state["connections"]
        assert isinstance(trades, int)
        assert isinstance(connections, dict)
        sent = sum(sum(one["frames_sent"].values()) for one in connections.values())
        line = (
            f"{trades:,} trades, {(trades - before) / (now - at):,.0f}/s, {len(connections)} connections, {sent:,} sent"
        )
        typer.echo(f"\r{line}\033[K", nl=False)
        before, at = trades, now


if __name__ == "__main__":
    typer.run(sim)
