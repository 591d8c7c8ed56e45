"""Two Ray nodes (two raylets on this machine): the copies of a feed live apart, and the loss of a node costs nothing.

Backfill is off: what the lost node's copy did not deliver, the other one did.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from k2ray.lake.catalog import load_table, open_catalog
from k2ray.sim.audit import audit
from tests.support.eventually import eventually
from tests.support.sim import start_sim
from tests.support.system import System, a_system

pytestmark = [pytest.mark.chaos_full, pytest.mark.timeout(900)]

FreePort = Callable[[], int]

RATE = 1_000
FIRST, SECOND = "feed:binance:0", "feed:binance:0:2"
WORKER_PORTS = 200
START_ATTEMPTS = 3


@dataclass
class Nodes:
    """A Ray cluster of several raylets on this machine, apart from any other: own ports, token, temp folder.

    Attributes:
        folder: For token and logs.
        free_port: Finds one.
        environment: With which drivers reach it.
    """

    folder: Path
    free_port: FreePort
    environment: dict[str, str] = field(default_factory=dict)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def temp(self) -> Path:
        return Path(f"/tmp/k2n-{os.getpid()}")  # Ray's sockets lie below, and their paths are bounded

    def head(self) -> None:
        """Start the first node."""
        token = self.folder / "token"
        token.write_text("2" * 64)
        self.environment |= {
            # Not on loopback: there Ray refuses a second node.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        }
        options = ("--head", "--include-dashboard=false", f"--temp-dir={self.temp}")
        _, output, ports = self._start(options, "port", "ray-client-server-port")
        found = re.search(r"Local node IP: ([\d.]+)", output)
        assert found is not None
        self.environment["RAY_ADDRESS"] = f"{found[1]}:{ports['port']}"

    def more(self) -> psutil.Process:
        """Start one more node; returns the process above all that is part of it."""
        process, _, _ = self._start((f"--address={self.environment['RAY_ADDRESS']}",))
        return psutil.Process(process.pid)

    def _start(self, options: tuple[str, ...], *more_ports: str) -> tuple[subprocess.Popen[bytes], str, dict[str, int]]:
        """Start a node; returns its process, what it said, and its ports."""
        for _ in range(START_ATTEMPTS):  # Ray itself gives a node up that is not there after 30 s
            number = len(self._started)
            output, first_port = self.folder / f"node{number}.log", 28_800 + number * WORKER_PORTS
            ports = {name: self.free_port() for name in ("dashboard-agent-listen-port", *more_ports)}
            ports |= {"min-worker-port": first_port, "max-worker-port": first_port + WORKER_PORTS - 1}
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options, "--log-color=false"]
            command += [*(f"--{name}={port}" for name, port in ports.items()), "--num-cpus=2"]
            plain = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHONWARNINGS"))}
            with output.open("w") as log:
                process = subprocess.Popen(
                    [*command, "--object-store-memory=100000000"],
                    env={**plain, **self.environment},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._started.append(process)
            eventually(functools.partial(_is_up_or_over, process, output), "it runs or gives up", timeout_s=240)
            if process.poll() is None:
                return process, output.read_text(), ports
            self._end(process)
        raise AssertionError(output.read_text())

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Leave nothing of a node: what it started is in its session."""
        with contextlib.suppress(psutil.NoSuchProcess):
            lose(psutil.Process(process.pid))
        for other in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(other.pid) == process.pid:
                    other.kill()
        process.wait(60)

    def end(self) -> None:
        """End all nodes, the newest first."""
        for process in reversed(self._started):
            self._end(process)
        shutil.rmtree(self.temp, ignore_errors=True)


def _is_up_or_over(process: subprocess.Popen[bytes], output: Path) -> bool:
    return "Ray runtime started" in output.read_text() or process.poll() is not None


def lose(node: psutil.Process) -> None:
    """kill -9 of all that is part of a node, as when its machine loses power."""
    for process in [node, *node.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture
def nodes(tmp_path: Path, free_port: FreePort) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path, free_port)
    try:
        nodes.head()
        yield nodes
    finally:
        nodes.end()


def delivering(system: System) -> dict[str, dict[str, Any]]:
    """Wait until all actors run and both copies deliver; returns logical name -> status."""

    def look() -> dict[str, dict[str, Any]]:
        status = system.status()
        found = {actor["name"].split("#")[0]: actor for actor in status["actors"]}
        well = all(actor["state"] == "running" and actor["ready"] for actor in found.values())
        return found if well and {FIRST, SECOND} <= set(found) else {}

    return eventually(look, "both copies deliver", timeout_s=240, pause_s=0.5)


def where(actors: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Return the nodes of both copies."""
    first, second = (actors[name]["detail"]["ray_node"] for name in (FIRST, SECOND))
    return first, second


def test_a_node_that_is_lost_takes_one_copy_of_a_feed_and_no_trade(
    nodes: Nodes, tmp_path: Path, free_port: FreePort
) -> None:
    other = nodes.more()
    (tmp_path / "sim").mkdir()
    supervision = {"start_timeout_s": 180, "crash_loop_restarts": 1_000, "backoff_max_s": 1}
    with (
        start_sim(tmp_path / "sim", rate=RATE) as sim,
        a_system(
            tmp_path / "system",
            sim,
            free_port(),
            nodes.environment,
            ray={"address": "auto"},
            exchanges={
                "binance": {
                    "ws_url": sim.ws_url,
                    "rest_url": sim.rest_url,
                    "channels": ["trades"],
                    "symbols": ["BTCUSDT", "ETHUSDT", "BNBUSDT"],  # all that it makes
                    "redundancy": 2,
                }
            },
            backfill={"enabled": False},
            supervision=supervision,
        ) as system,
    ):
        up = system.run("up")
        assert up.status == 0, up.err + up.out
        before = delivering(system)
        assert len(set(where(before))) == 2, "the copies live on two nodes"
        lost_pids = {process.pid for process in other.children(recursive=True)}
        victim, survivor = (FIRST, SECOND) if before[FIRST]["pid"] in lost_pids else (SECOND, FIRST)
        assert before[victim]["pid"] in lost_pids
        assert before[survivor]["pid"] not in lost_pids

        lose(other)
        after = eventually(
            lambda: found if (found := delivering(system))[victim]["pid"] != before[victim]["pid"] else {},
            "the loss is noticed, and the next generation delivers",
            timeout_s=120,
        )
        assert after[survivor]["pid"] == before[survivor]["pid"], "the other copy was not touched"
        assert len(set(where(after))) == 1, "where there is one node, both copies share it"

        nodes.more()
        assert where(delivering(system)) == where(after), "nobody moves just because there is room again"
        os.kill(after[survivor]["pid"], signal.SIGKILL)
        eventually(
            lambda: delivering(system)[survivor]["pid"] != after[survivor]["pid"], "the next generation", timeout_s=120
        )
        assert len(set(where(delivering(system)))) == 2, "whoever starts next goes where the other copy is not"

        sim.stop()
        down = system.run("down")
        assert down.status == 0, down.err
        table = load_table(open_catalog(system.settings, system.layout), system.settings, "trades")
        assert table is not None
        assert sim.truth is not None
        result = audit(sim.truth, table, "trade")
        print(result)  # noqa: T201  shown with -s and on failure
        assert result.sent > RATE
        assert result.exact, result
