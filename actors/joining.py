"""Become a driver of a Ray cluster, with a deadline of ours and a reason where it refuses."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from typing import Any

from k2ray.errors import RayUnavailable

PROBE_TIMEOUT_S = 3.0


def join(target: str, namespace: str, timeout_s: float) -> str:
    """Call `ray.init` with a deadline; returns the address it reached.

    Ray puts the working directory before everything else on the import path of all actors that this driver makes, also
    before a release's folder: a system brought up in a checkout would run the checkout for ever. So it is called in the
    root folder, where no package of ours is.
    """
    import ray

    outcome: list[Any] = []

    def attempt() -> None:
        try:
            ray.init(address=target, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR)
            outcome.append(str(ray.get_runtime_context().gcs_address))
        except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
            outcome.append(error)

    if ray.is_initialized():
        return str(ray.get_runtime_context().gcs_address)
    thread = threading.Thread(target=attempt, name="ray-init", daemon=True)
    with contextlib.chdir("/"):
        thread.start()
        thread.join(timeout_s)
    if not outcome:
        raise RayUnavailable(f"the Ray at {target} did not let us in within {timeout_s:g} s")
    result = outcome[0]
    if isinstance(result, str):
        return result
    raise RayUnavailable(_explain(target, result)) from result


def _explain(target: str, error: Exception) -> str:
    text = str(error).strip().splitlines()
    first = text[0] if text else type(error).__name__
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
    token = f"its token is refused or missing (RAY_AUTH_MODE is {mode}, token file {path})"
    if "token" in str(error).lower() or "auth" in str(error).lower():
        return f"the Ray at {target}: {token}: {first}"
    if target == "auto":
        return f"ray.address is auto, but no running Ray lets us in: none was started here, or {token}: {first}"
    return f"the Ray at {target} answers but does not let us in: most likely {token}: {first}"


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False
