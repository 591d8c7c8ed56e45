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
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from actors import ray_environment
from actors.joining import answers, join
from actors.ports import SERVICES, find_free_block
from actors.wanted import write_private
from k2ray.errors import RayUnavailable
from k2ray.layout import DataDir
from k2ray.settings import Settings

START_TIMEOUT_S = 90.0
"""4 to 7 s here when idle; a busy or cold machine takes a multiple."""
START_ATTEMPTS = 3
STOP_TIMEOUT_S = 20.0
"""2.5 s once no actor is left in a `run()`; past this the process group is killed."""
CONNECT_TIMEOUT_S = 40.0
"""Ray itself tries for more than 200 s at a wrong address."""
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


class _HeadEnded(RayUnavailable):
    """Our head ended by itself before it was ready."""


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
        if known is None or known.own is self.joins:
            return None
        if known.own:
            return known if known.pid is not None and self._is_our_head(known.pid) else None
        return known if answers(known.address) else None

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
        own = ray_environment.own_environment(self._layout)
        if base_port is not None and haproxy:
            own |= ray_environment.haproxy_environment(self._layout, base_port)
        return own

    def prepare(self) -> None:
        """Set this process's environment for our cluster; call it before anything imports Ray."""
        ray_environment.update(self.environment())
        if not self.joins:
            os.environ.pop("RAY_ADDRESS", None)

    # --- our own head

    def start(self) -> ClusterAddress:
        """Start our own head, or find it running; ready for drivers on return.

        Raises:
            RayUnavailable: It ended, three times, or was not ready in time; the message has the end of its log.
        """
        running = self.running()
        if running is not None:
            return running
        self._make_token()
        self._haproxy = self._haproxy and ray_environment.haproxy_runs()
        for left in reversed(range(START_ATTEMPTS)):
            self._end_leftovers()
            try:
                return self._start_head(find_free_block())
            except _HeadEnded:
                # Somebody took one of its ports meanwhile, or the machine was too busy for Ray's own 30 s.
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _start_head(self, base_port: int) -> ClusterAddress:
        own = self.environment(base_port)
        environment = ray_environment.head_environment(os.environ, own, watch_memory=self._watch_memory)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            process = self._process = subprocess.Popen(
                self._command(base_port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
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
                raise _HeadEnded(f"Ray's head ended with status {process.returncode}:\n{self._log_end()}")
            if time.monotonic() > deadline_s:
                self.stop()
                raise RayUnavailable(f"Ray's head was not ready within {START_TIMEOUT_S:g} s:\n{self._log_end()}")
            time.sleep(0.1)
        return address

    def stop(self) -> bool:
        """Stop our own head by its pid; False if there was none. A joined cluster is left alone."""
        known = self.known()
        if known is None or not known.own or known.pid is None or not self._is_our_head(known.pid):
            self._file.unlink(missing_ok=True)
            if known is not None and known.own:
                self._end_leftovers()
            return False
        members = self._members()
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
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        command += [f"{option}={base_port + offset}" for option, offset in SERVICES.items()]
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

    def _members(self) -> list[psutil.Process]:
        """Return the processes of our cluster: Ray's own that name our temp folder, and their descendants."""
        mark = str(self._layout.ray_temp)
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                if _is_rays(command := process.cmdline()) and any(_names_folder(part, mark) for part in command):
                    found |= {member.pid: member for member in (process, *process.children(recursive=True))}
            except psutil.Error:
                continue
        found.pop(os.getpid(), None)
        return list(found.values())

    def _end_leftovers(self) -> None:
        """End what an earlier head of ours left behind when it was killed: two supervisors would compete."""
        left = self._members()
        for process in left:
            _kill_quietly(process)
        psutil.wait_procs(left, timeout=5)
        self._clear_temp()

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
        if target != "auto" and not answers(target):
            raise RayUnavailable(f"nothing listens at {target} (ray.address)")
        self.prepare()
        reached = join(target, self._layout.namespace, timeout_s)
        if known is None:
            known = ClusterAddress(reached, own=False)
            write_private(self._file, json.dumps(asdict(known)))
        return known


def _is_rays(command: list[str]) -> bool:
    return any("/site-packages/ray/" in part or part == "ray.scripts.scripts" for part in command)


def _names_folder(argument: str, folder: str) -> bool:
    return argument.endswith(folder) or f"{folder}/" in argument


def _kill_quietly(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return
