"""`k2ray demo`: a simulated exchange, recorded and queried, with the proof at the end.

Everything it starts is its own: a simulator, and a k2ray of its own data folder, port and Ray. It ends after
`--seconds` or at Ctrl-C, stops all of that and nothing else, and compares ids.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table as Grid

from k2ray.cli.own_system import Stopped, choose_port, interruptible, make_empty, run_command
from k2ray.sim.process import Sim, running_sim

SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT", "XRPUSDT", "BTCFDUSD")

console = Console()


def demo(
    seconds: float | None = None,
    *,
    rate: float = 500,
    data_dir: Path = Path("k2ray-demo"),
    port: int | None = None,
    transport: str = "websockets",
    seed: int = 1,
) -> int:
    """Record a simulated exchange, answer questions about it, and prove at the end that nothing is missing.

    Args:
        seconds: Record for this long; None: until Ctrl-C.
        rate: Trades per second that the simulated exchange makes.
        data_dir: Where the demo's data goes; an earlier demo's is removed.
        port: The API's; None takes 8000, or a free one if that is taken.
        transport: `websockets` or `picows`.
        seed: What the simulated market's content follows from.

    Returns:
        Exit status: 0 if nothing was lost, duplicated or invented.

    Raises:
        K2rayError: A part did not start; the message says which.
    """
    config = data_dir / "k2ray.yaml"
    verdict = 1
    with interruptible():
        try:
            _step(f"data folder {data_dir}")
            make_empty(data_dir)
            _step("simulated exchange (Binance's protocol over TLS, with its own CA)")
            with running_sim(data_dir, rate=rate, seed=seed, symbols=SYMBOLS) as sim:
                console.print(f"    {sim.ws_url}  {rate:g} trades/s of {', '.join(SYMBOLS)}", highlight=False)
                _record(sim, config, choose_port(port), transport, seconds)
            assert sim.truth is not None
            verdict = _summary(config, sim.truth)
        except Stopped:
            console.print("stopped before the recording began")
    return verdict


def _record(sim: Sim, config: Path, port: int, transport: str, seconds: float | None) -> None:
    """Bring k2ray up, show it working until the end, and bring it down: the exchange first, so that all can drain."""
    settings = sim.config(symbols=SYMBOLS, channels=("trades", "quotes"), port=port, transport=transport)
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    try:
        _step("k2ray up: broker, topics, tables, Ray, supervisor, feeds, writers, API")
        run_command("up", config, check=True)
        _show_questions(f"http://127.0.0.1:{port}")
        with contextlib.suppress(Stopped):
            _watch(f"http://127.0.0.1:{port}", seconds)
    finally:
        _step("stopping: the exchange first, then feeds, Kafka, writers, actors, Ray")
        sim.stop()
        run_command("down", config, check=False)


def _step(text: str) -> None:
    console.print(f"[bold cyan]==>[/] {text}", highlight=False)


def _show_questions(address: str) -> None:
    console.print(f"\n[bold]The API is at {address}[/]  (its page of questions: {address}/docs)\n", highlight=False)
    for path in (
        "/v1/trades?exchange=binance&symbols=BTCUSDT&limit=3&order=desc",
        "/v1/bars?exchange=binance&symbols=BTCUSDT,ETHUSDT&interval=10s&limit=4",
        "/v1/status",
    ):
        console.print(f"  curl -s '{address}{path}'", highlight=False, soft_wrap=True)
    console.print()


def _watch(address: str, seconds: float | None) -> None:
    """Show live counters until the time is up or a signal comes."""
    deadline = None if seconds is None else time.monotonic() + seconds
    last_printed = 0.0
    with httpx.Client(base_url=address, timeout=5) as client, Live(console=console, transient=False) as live:
        while deadline is None or time.monotonic() < deadline:
            status = _ask(client)
            if console.is_terminal:
                live.update(_counters(status, deadline))
            elif time.monotonic() - last_printed > 10:
                last_printed = time.monotonic()
                console.print(_line(status), highlight=False)
            pause = 1.0 if deadline is None else min(1.0, max(0.0, deadline - time.monotonic()))
            time.sleep(pause)


def _ask(client: httpx.Client) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = client.get("/v1/status").json()
    except (httpx.HTTPError, ValueError) as error:
        return {"actors": [], "error": str(error)}
    return answer


def _counters(status: dict[str, Any], deadline: float | None) -> Grid:
    remaining = "Ctrl-C ends it" if deadline is None else f"{max(0.0, deadline - time.monotonic()):.0f} s left"
    grid = Grid(title=f"recording; {remaining}", title_justify="left")
    for column in ("actor", "state", "rate/s", "lag (trades)", "restarts", "RSS MB"):
        grid.add_column(column, justify="left" if column in {"actor", "state"} else "right")
    for actor in status.get("actors", []):
        grid.add_row(
            str(actor.get("name")),
            str(actor.get("state")),
            _number(actor.get("rate")),
            _number(actor.get("lag_trades")),
            _number(actor.get("restarts")),
            _number((actor.get("rss_bytes") or 0) / 1e6),
        )
    return grid


def _line(status: dict[str, Any]) -> str:
    if "error" in status:
        return f"    the API did not answer: {status['error']}"
    parts = [
        f"{actor.get('name')} {actor.get('state')} {_number(actor.get('rate'))}/s"
        for actor in status.get("actors", [])
        if actor.get("rate") is not None
    ]
    return "    " + "; ".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _summary(config: Path, truth: Path) -> int:
    """Print what came of every row; 0 if nothing is lost, duplicated or invented."""
    from k2ray.lake.catalog import load_table, open_catalog
    from k2ray.layout import DataDir
    from k2ray.settings import load_settings
    from k2ray.sim.audit import audit, freshness_s

    settings = load_settings(config)
    catalog = open_catalog(settings, DataDir(settings.data_dir))
    grid = Grid(title="the proof: what the exchange sent against what the table holds, id by id", title_justify="left")
    for column in ("rows", "sent", "stored", "lost", "duplicated", "invented", "freshness p50", "p99"):
        grid.add_column(column, justify="left" if column == "rows" else "right")
    exact = True
    for name, table_name, channel in (("trades", "trades", "trade"), ("quotes", "quotes", "bookTicker")):
        table = load_table(catalog, settings, table_name)
        if table is None:
            console.print(f"[red]there is no table {table_name}[/]")
            return 1
        result = audit(truth, table, channel)
        exact = exact and result.exact and result.stored > 0
        fresh = freshness_s(table)
        numbers = [result.sent, result.stored, result.lost, result.duplicated, result.invented]
        grid.add_row(name, *map(_number, numbers), *([f"{value:.2f} s" for value in fresh] if fresh else ["", ""]))
    console.print(grid)
    console.print("[bold green]exact[/]" if exact else "[bold red]NOT exact[/]")
    return 0 if exact else 1
