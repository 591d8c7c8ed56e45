"""`k2ray broker start|stop|status`: the local Kafka by itself. `k2ray up` does all of this on its own."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console

from k2ray.errors import K2rayError, OperatorNeeded
from k2ray.layout import DataDir
from k2ray.log.broker import STOP_TIMEOUT_S, LocalBroker
from k2ray.settings import Settings, load_settings

app = typer.Typer(name="broker", help="The local Apache Kafka of one data folder.", no_args_is_help=True)

HEALTHY, DEGRADED, DOWN = 0, 1, 2
FAILED = 1

_CONFIG = typer.Option(None, "--config", help="Settings file; by default K2RAY_CONFIG or ./k2ray.yaml.")


@app.command()
def start(config: Path | None = _CONFIG) -> None:
    """Start the local Kafka and wait until it answers; one that runs is left as it is."""
    console = Console()
    began_s = time.monotonic()
    try:
        settings = load_settings(config)
        broker = _broker(settings, console)
        with console.status("Starting Apache Kafka"):
            address = broker.start()
    except K2rayError as error:
        _fail(error)
    if address.adopted:
        console.print(f"Kafka runs already at {address.bootstrap} (pid {address.pid}).")
    else:
        took_s = time.monotonic() - began_s
        console.print(f"Kafka {address.version} answers at {address.bootstrap} (pid {address.pid}, {took_s:.1f} s).")


@app.command()
def stop(
    config: Path | None = _CONFIG,
    timeout: float = typer.Option(STOP_TIMEOUT_S, "--timeout", min=0, help="Seconds until SIGTERM becomes SIGKILL."),
) -> None:
    """Stop the local Kafka; its log stays."""
    console = Console()
    try:
        settings = load_settings(config)
        stopped = _broker(settings, console).stop(timeout)
    except K2rayError as error:
        _fail(error)
    console.print("Kafka is stopped." if stopped else "No local Kafka was running.")


@app.command()
def status(
    config: Path | None = _CONFIG,
    as_json: bool = typer.Option(False, "--json", help="One JSON object instead of a line."),
) -> None:
    """Say whether the local Kafka answers. Exit status: 0 it does, 1 it runs but is silent, 2 it is stopped."""
    console = Console()
    try:
        settings = load_settings(config)
        found = _broker(settings, console).status()
    except K2rayError as error:
        _fail(error)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found)))
    elif found.address is None:
        console.print(f"stopped (never started below {settings.data_dir})")
    elif found.state == "stopped":
        console.print(f"stopped (its address stays {found.address.bootstrap}; log {_mebibytes(found.log_bytes)})")
    else:
        sizes = f"memory {_mebibytes(found.rss_bytes)}, log {_mebibytes(found.log_bytes)}"
        console.print(f"{found.state} at {found.address.bootstrap} (pid {found.address.pid}, {sizes})")
    raise typer.Exit({"running": HEALTHY, "silent": DEGRADED}.get(found.state, DOWN))


def _broker(settings: Settings, console: Console) -> LocalBroker:
    if settings.kafka.bootstrap_servers is not None:
        raise OperatorNeeded(
            f"kafka.bootstrap_servers is set ({settings.kafka.bootstrap_servers}): that Kafka is not ours to start, "
            "stop or judge. Remove the setting to use a local one."
        )
    return LocalBroker(DataDir(settings.data_dir), settings.kafka.heap_bytes, report=console.print)


def _fail(error: K2rayError) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"k2ray broker: {error}", style="red", markup=False, highlight=False)
    raise typer.Exit(FAILED)


def _mebibytes(size: int) -> str:
    return f"{size / 1_048_576:.0f} MiB"
