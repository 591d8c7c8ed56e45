"""Start, update and stop the HTTP interface: `serve.app` on Ray Serve. Needs a connected driver.

An update is made by a process of its own that imports the release's code, so that the old release's application is
built by the old release's builder. It asks for one replica more than the settings say: Serve then starts a new one
before it stops the first old one, with one replica as with ten. Then the surplus one drains.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import ray.serve
from ray.exceptions import RayError

from actors import edge
from actors.wanted import Release
from k2ray.cli.system import System
from k2ray.errors import TryAgain
from k2ray.settings import Settings

READY_TIMEOUT_S = 90.0
"""6 s here from nothing; a replica that must first open a catalog on a busy machine takes a multiple."""

UPDATE_TIMEOUT_S = 180.0
"""Two replicas started one after the other, and three drained: 20 s here, if nobody asks anything that takes long."""


def start_serving(system: System, settings: Settings, code: str | None = None) -> None:
    """Start Serve where it does not run, deploy the app, and wait until it is ready.

    Args:
        system: Whose API.
        settings: With a local broker's address filled in; given to the replicas as an argument.
        code: Folder that the replicas import their modules from; None: what is installed.

    Raises:
        TryAgain: Not ready in time; the message says what the last answer was.
    """
    _run_app(system, settings, code, settings.api.replicas)
    wait_ready(system)


def update_serving(system: System, release: Release, folder: Path) -> None:
    """Let the running app answer with another release, without a request that fails.

    Args:
        system: Whose API.
        release: Its settings, with a local broker's address filled in, and its code.
        folder: Where its packages are.

    Raises:
        TryAgain: It did not come up; some replicas may be of the new release.
    """
    timeout_s = _update_timeout_s(system.settings)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "k2ray.cli.serving"]
    told = json.dumps({"settings": release.settings, "code": release.code})
    try:
        done = subprocess.run(
            command, input=told, env=environment, cwd=folder, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise TryAgain(f"HTTP was not updated within {timeout_s:g} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise TryAgain(f"HTTP was not updated: {lines[-1] if lines else f'status {done.returncode}'}")


def main() -> None:
    """Update the app with the code that this process imported, as standard input says."""
    told: dict[str, Any] = json.load(sys.stdin)
    settings = Settings.from_json(told["settings"])
    system = System.of(settings)
    system.cluster.connect()
    for replicas in (settings.api.replicas + 1, settings.api.replicas):
        _run_app(system, settings, told["code"], replicas)
        _wait_for_replicas(system, replicas)


def _update_timeout_s(settings: Settings) -> float:
    """Return how long an update may take: both times that replicas drain, each first ends its longest query."""
    return UPDATE_TIMEOUT_S + 2 * settings.api.timeout_s


def _run_app(system: System, settings: Settings, code: str | None, replicas: int) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # Our package is called serve as Ray's is: it is imported by its full name.
    builder = importlib.import_module("serve.app").app
    app = builder({"settings": settings.to_json(), "code": code, "replicas": replicas})
    try:
        ray.serve.start(http_options={"host": settings.api.host, "port": settings.api.port})
        ray.serve.run(app, name=system.layout.namespace, route_prefix="/", blocking=False)
    except (RayError, RuntimeError, TimeoutError) as error:
        # Ray's own words are many lines, and none for an actor that died while it was made.
        said = edge.first_line(error)
        raise TryAgain(f"the HTTP interface did not start: {type(error).__name__}: {said}") from error


def _wait_for_replicas(system: System, replicas: int) -> None:
    """Wait until exactly these run and none comes or goes: the next step counts on it."""
    deadline_s = time.monotonic() + _update_timeout_s(system.settings)
    while True:
        application = ray.serve.status().applications[system.layout.namespace]
        states = {str(state): count for state, count in application.deployments["api"].replica_states.items() if count}
        if states == {"RUNNING": replicas}:
            return
        if time.monotonic() > deadline_s:
            raise TryAgain(f"HTTP's replicas are {states}, not {replicas} that run")
        time.sleep(0.1)


def wait_ready(system: System) -> None:
    """Wait until /ready is 200.

    Raises:
        TryAgain: It is not, in time.
    """
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    last = "no answer"
    while time.monotonic() < deadline_s:
        try:
            answer = httpx.get(f"{system.api_url}/ready", timeout=5.0)
            if answer.status_code == httpx.codes.OK:
                return
            last = f"{answer.status_code} {answer.text[:300]}"
        except httpx.HTTPError as error:
            last = f"{type(error).__name__}: {error}"
        time.sleep(0.1)
    raise TryAgain(f"{system.api_url}/ready was not 200 within {READY_TIMEOUT_S:g} s; the last answer: {last}")


def stop_serving(system: System) -> None:
    """Take our app down; Serve itself only where no other app uses it and the Ray is ours."""
    try:
        applications = dict(ray.serve.status().applications)
    except (RayError, RuntimeError, ValueError):
        return
    if not applications:
        return
    others = [name for name in applications if name != system.layout.namespace]
    if others or system.cluster.joins:
        if system.layout.namespace in applications:
            ray.serve.delete(system.layout.namespace)
        return
    shutdown: Callable[[], None] = ray.serve.shutdown
    shutdown()


if __name__ == "__main__":
    main()
