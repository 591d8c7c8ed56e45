"""Start and stop the HTTP interface: `serve.app` on Ray Serve. Needs a connected driver."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable

import httpx
import ray.serve
from ray.exceptions import RayError

from k2ray.cli.system import System
from k2ray.errors import TryAgain
from k2ray.settings import Settings

READY_TIMEOUT_S = 90.0
"""6 s here from nothing; a replica that must first open a catalog on a busy machine takes a multiple."""


def start_serving(system: System, settings: Settings) -> None:
    """Start Serve where it does not run, deploy the app, and wait until it is ready.

    Args:
        system: Whose API.
        settings: With a local broker's address filled in; given to the replicas as an argument.

    Raises:
        TryAgain: Not ready in time; the message says what the last answer was.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.serve.start(http_options={"host": settings.api.host, "port": settings.api.port})
    # Our package is called serve as Ray's is: it is imported by its full name.
    builder = importlib.import_module("serve.app").app
    app = builder({"settings": settings.to_json()})
    try:
        ray.serve.run(app, name=system.layout.namespace, route_prefix="/", blocking=False)
    except (RayError, RuntimeError) as error:
        raise TryAgain(f"the HTTP interface did not start: {error}") from error
    wait_ready(system)


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
