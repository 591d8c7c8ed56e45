"""Ray's environment: our own head below `data_dir`, or one that somebody else started; addresses, ports, token.

Imports no Ray at its top: Ray reads half of its environment while it is imported, so `prepare` comes first.

- Everything of our own head is on loopback (`RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`: the option --node-ip-address does
  not hold), needs a token (0600, below data_dir) and takes its ports from one free block outside 10002-19999, which
  other clusters' workers use.
- The head is one `ray start --block` process that we own; SIGTERM to its pid ends this cluster and no other. `ray stop`
  ends every cluster of the machine and is never called.
- A cluster that we joined is never stopped.

Next in the flow: `actors/edge.py` makes actors in the cluster that this module reached.
"""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from actors.wanted import write_private
from k2ray.errors import RayUnavailable
from k2ray.layout import DataDir
from k2ray.settings import Settings

START_TIMEOUT_S = 90.0
"""4 to 7 s here when idle; a busy or cold machine takes a multiple."""
STOP_TIMEOUT_S = 20.0
"""2.5 s once no actor is left in a `run()`; past this the process group is killed."""
CONNECT_TIMEOUT_S = 40.0
"""Ray itself tries for more than 200 s at a wrong address."""
PROBE_TIMEOUT_S = 3.0

_BLOCK = 400
_BLOCK_RANGE = (20_000, 29_600)
_READY = "Ray runtime started"


@dataclass(frozen=True)
class ClusterAddress:
    """How a Ray cluster is reached.

    Attributes:
        address: HOST:PORT of its GCS.
        own: Whether it is our own head, which `down` stops.
        pid: Of our head's `ray start --block`; None if joined.
        dashboard: Its URL; None if there is none or it is not ours.
        base_port: First of our head's block of ports.
        haproxy: Whether Serve in it answers through HAProxy.
    """

    address: str
    own: bool
    pid: int | None = None
    dashboard: str | None = None
    base_port: int | None = None
    haproxy: bool = False


class RayCluster:
    """The Ray cluster of one data folder.

    Args:
        settings: What Ray section says.
        layout: Where token, pid and address live.
        watch_memory: Whether Ray's own memory monitor may kill workers; off in tests, where it kills innocents.
        haproxy: Whether Serve in our own head is to answer through HAProxy (six times the requests of Serve's proxy).
    """

    def __init__(self, settings: Settings, layout: DataDir, *, watch_memory: bool = True, haproxy: bool = True) -> None:
        self._haproxy = haproxy
        self._settings = settings
        self._layout = layout
        self._watch_memory = watch_memory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def joins(self) -> bool:
        """Whether the settings name somebody else's cluster."""
        return self._settings.ray.address is not None

    @property
    def log_file(self) -> Path:
        """Where our head's own output goes."""
        return self._layout.logs / "ray-head.log"

    def known(self) -> ClusterAddress | None:
        """Return the address that the last start or join wrote down; None if there is none."""
        try:
            return ClusterAddress(**json.loads(self._file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def running(self) -> ClusterAddress | None:
        """Return the written address if its head lives (of a joined one: if its port answers)."""
        known = self.known()
        if known is None:
            return None
        if known.own:
            return known if known.pid is not None and self._is_our_head(known.pid) else None
        return known if _answers(known.address) else None

    # --- environment

    def environment(self, base_port: int | None = None) -> dict[str, str]:
        """Return the variables with which head, drivers and Ray's own commands reach our cluster; empty if joined.

        Args:
            base_port: Of the head about to start; None takes the running one's.
        """
        if self.joins:
            return {}
        known = self.known()
        haproxy = self._haproxy if base_port is not None else known is not None and known.haproxy
        base_port = base_port or (known.base_port if known else None)
        variables = {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._layout.run / "ray-token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_DEDUP_LOGS": "0",
        }
        if base_port is not None and haproxy:
            variables |= self._haproxy_environment(base_port)
        return variables

    def _haproxy_environment(self, base_port: int) -> dict[str, str]:
        # Each of these has one fixed default, which two clusters on a machine would share.
        folder = self._layout.ray_temp / "haproxy"
        return {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(base_port + 10),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(base_port + 11),
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(base_port + 300),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(base_port + 349),
            "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(base_port + 350),
            "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(base_port + 399),
        }

    def prepare(self) -> None:
        """Set this process's environment for our cluster; call it before anything imports Ray."""
        os.environ.update(self.environment())
        # Ray asks this often, a second apart, before it gives up on a cluster that refuses its token.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "6")
        if not self.joins:
            os.environ.pop("RAY_ADDRESS", None)

    # --- our own head

    def start(self) -> ClusterAddress:
        """Start our own head, or find it running; ready for drivers on return.

        Raises:
            RayUnavailable: It ended or was not ready in time; the message has the end of its log.
        """
        running = self.running()
        if running is not None:
            return running
        self._make_token()
        self._clear_temp()
        base_port = find_free_block()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            process = self._process = subprocess.Popen(
                self._command(base_port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._head_environment(base_port),
                start_new_session=True,
                cwd=self._layout.root,
            )
        dashboard = f"http://127.0.0.1:{base_port + 1}" if self._settings.ray.dashboard else None
        address = ClusterAddress(f"127.0.0.1:{base_port}", True, process.pid, dashboard, base_port, self._haproxy)
        write_private(self._file, json.dumps(asdict(address)))
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while _READY not in self.log_file.read_text(encoding="utf-8", errors="replace"):
            if process.poll() is not None:
                self._file.unlink(missing_ok=True)
                raise RayUnavailable(f"Ray's head ended with status {process.returncode}:\n{self._log_end()}")
            if time.monotonic() > deadline_s:
                self.stop()
                raise RayUnavailable(f"Ray's head was not ready within {START_TIMEOUT_S:g} s:\n{self._log_end()}")
            time.sleep(0.1)
        return address

    def stop(self) -> bool:
        """Stop our own head by its pid; False if there was none. A joined cluster is left alone."""
        known = self.known()
        if known is None or not known.own or known.pid is None or not self._is_our_head(known.pid):
            if known is not None:
                self._file.unlink(missing_ok=True)
            return False
        members = self._members(known.pid)
        os.kill(known.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs([psutil.Process(known.pid)], timeout=STOP_TIMEOUT_S)
        # Whoever Ray left behind is ours by its session or by the temp folder in its command line.
        left = [process for process in members if process.is_running()] + alive
        for process in left:
            _kill_quietly(process)
        psutil.wait_procs(left, timeout=5)
        if self._process is not None:
            self._process.wait()
        self._file.unlink(missing_ok=True)
        self._clear_temp()
        return True

    def _command(self, base_port: int) -> list[str]:
        ray = self._settings.ray
        ports = {
            "--port": 0,
            "--dashboard-port": 1,
            "--dashboard-agent-listen-port": 2,
            "--dashboard-agent-grpc-port": 3,
            "--runtime-env-agent-port": 4,
            "--metrics-export-port": 5,
            "--ray-client-server-port": 6,
            "--node-manager-port": 7,
            "--object-manager-port": 8,
            "--min-worker-port": 20,
            "--max-worker-port": 299,
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        command += [f"{option}={base_port + offset}" for option, offset in ports.items()]
        command += [
            "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1",
            f"--temp-dir={self._layout.ray_temp}",
            f"--object-store-memory={ray.object_store_bytes}",
        ]
        if ray.num_cpus is not None:
            command.append(f"--num-cpus={ray.num_cpus}")
        if not ray.dashboard:
            command += ["--include-dashboard=false", "--no-monitor", "--include-log-monitor=false"]
        return command

    def _head_environment(self, base_port: int) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            # Settings are arguments; warnings that a test makes errors would end Ray's own processes.
            if not name.startswith(("K2RAY_", "PYTEST_")) and name not in {"RAY_ADDRESS", "PYTHONWARNINGS"}
        }
        kept |= self.environment(base_port)
        if not self._watch_memory:
            kept["RAY_memory_monitor_refresh_ms"] = "0"
        return kept

    def _make_token(self) -> None:
        path = self._layout.run / "ray-token"
        if not path.exists():
            write_private(path, secrets.token_hex(32))

    def _is_our_head(self, pid: int) -> bool:
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return f"--temp-dir={self._layout.ray_temp}" in process.cmdline()
        except psutil.Error:
            return False

    def _members(self, pid: int) -> list[psutil.Process]:
        """Return the processes of our cluster: the head's descendants and whoever works in our temp folder."""
        found = {process.pid: process for process in psutil.Process(pid).children(recursive=True)}
        for process in psutil.process_iter():
            try:
                inside = any(str(self._layout.ray_temp) + "/" in part for part in process.cmdline())
            except psutil.Error:
                continue
            if inside and process.pid != os.getpid():
                found[process.pid] = process
        return list(found.values())

    def _clear_temp(self) -> None:
        shutil.rmtree(self._layout.ray_temp, ignore_errors=True)

    def _log_end(self) -> str:
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join(lines[-15:])

    @property
    def _file(self) -> Path:
        return self._layout.run / "ray.json"

    # --- connecting

    def connect(self, timeout_s: float = CONNECT_TIMEOUT_S) -> ClusterAddress:
        """Make this process a driver of the cluster: our own head, or the one that `ray.address` names.

        Raises:
            RayUnavailable: Nothing answers, or the token is refused; the message says which.
        """
        known = self.running()
        if known is None and not self.joins:
            raise RayUnavailable("our own Ray head does not run; start it with `k2ray up`")
        target = known.address if known is not None else str(self._settings.ray.address)
        if target != "auto" and not _answers(target):
            raise RayUnavailable(f"nothing listens at {target} (ray.address)")
        self.prepare()
        reached = _init(target, self._layout.namespace, timeout_s)
        if known is None:
            known = ClusterAddress(reached, own=False)
            write_private(self._file, json.dumps(asdict(known)))
        return known


def _init(target: str, namespace: str, timeout_s: float) -> str:
    """Call `ray.init` with a deadline; returns the address it reached."""
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


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


def _kill_quietly(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return


def find_free_block(chance: random.Random | None = None) -> int:
    """Return the first of a block of free ports of 127.0.0.1, outside the range of other clusters' workers."""
    chance = chance or random.SystemRandom()
    for _ in range(100):
        base = chance.randrange(*_BLOCK_RANGE, _BLOCK)
        if all(_is_free(base + offset) for offset in (*range(12), *range(20, _BLOCK, 20))):
            return base
    raise RayUnavailable(f"no block of {_BLOCK} free ports between {_BLOCK_RANGE[0]} and {_BLOCK_RANGE[1]}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
