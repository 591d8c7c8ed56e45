"""`k2ray status`: the supervisor's picture, asked with a deadline; exit status 0 healthy, 1 degraded, 2 down."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from actors.history import read_history
from k2ray.cli.console import out
from k2ray.cli.picture import draw, reasons_of
from k2ray.cli.system import System
from k2ray.errors import OperatorNeeded, TryAgain
from k2ray.log.broker import LocalBroker

HEALTHY, DEGRADED, DOWN = 0, 1, 2
ANSWER_TIMEOUT_S = 10.0
WATCH_INTERVAL_S = 2.0
PLAIN_WIDTH = 240


def status(config: Path | None, *, as_json: bool, watch: bool) -> int:
    """Print the state of the system of a settings file; returns the exit status."""
    system = System.load(config)
    if not watch:
        picture, verdict = look(system)
        if as_json:
            out.print(json.dumps(picture), markup=False)
        else:
            # Rich takes 80 columns where there is no terminal, which would cut names and reasons.
            console = out if out.is_terminal else Console(width=PLAIN_WIDTH, highlight=False)
            console.print(draw(picture))
        return verdict
    verdict = DOWN
    try:
        with Live(console=out, auto_refresh=False) as live:
            while True:
                picture, verdict = look(system)
                live.update(draw(picture), refresh=True)
                time.sleep(WATCH_INTERVAL_S)
    except KeyboardInterrupt:
        return verdict


def look(system: System) -> tuple[dict[str, Any], int]:
    """Return the picture (a contract: docs/operations.md) and the exit status."""
    picture: dict[str, Any] = {
        "api": system.api_url,
        "kafka": _kafka_address(system),
        "ray": None,
        "level": 0,
        "release": None,
        "deployment": None,
        "actors": [],
        "gaps": [],
        "reasons": [],
    }
    reasons: list[str] = picture["reasons"]
    _look_at_releases(system, picture)
    known = system.cluster.running()
    if known is None:
        reasons.append("Ray does not run")
        return picture, DOWN
    picture["ray"] = known.address
    try:
        system.cluster.connect()
        from actors.supervisor import system_status

        answer = system_status(system.layout.namespace, ANSWER_TIMEOUT_S)
    except TryAgain as error:
        reasons.append(str(error))
        return picture, DOWN
    picture |= {key: answer[key] for key in ("level", "actors", "gaps")}
    reasons += reasons_of(answer)
    if not system.ready():
        reasons.append(f"{system.api_url}/ready is not 200")
    return picture, DEGRADED if reasons else HEALTHY


def _look_at_releases(system: System, picture: dict[str, Any]) -> None:
    """Say which release runs, and what is under way, or was left half-way and is to be completed by somebody."""
    try:
        history = read_history(system.layout)
    except OperatorNeeded as error:
        picture["reasons"].append(str(error))
        return
    picture["release"] = history.running
    half = history.under_way
    if half is None:
        return
    at_work = system.is_changed()
    picture["deployment"] = {**asdict(half), "at_work": at_work}
    if not at_work:
        picture["reasons"].append(
            f"a {half.kind} of release {half.digest} was left half-way at: {half.step or 'its beginning'}; "
            "`k2ray deploy` completes it, `k2ray rollback` takes it back"
        )


def _kafka_address(system: System) -> str | None:
    if system.settings.kafka.bootstrap_servers is not None:
        return system.settings.kafka.bootstrap_servers
    address = LocalBroker(system.layout).status().address
    return address.bootstrap if address is not None else None
