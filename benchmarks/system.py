"""The whole system for a benchmark: simulated exchange, broker, feeds, writers and API, as `k2ray up` starts them."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from k2ray.exchanges.binance_decode import STREAMS
from k2ray.settings import Settings, load_settings
from k2ray.sim.process import Sim, running_sim


@dataclass
class System:
    """A running system under a simulated exchange."""

    sim: Sim
    settings: Settings
    url: str
    stopped: bool = field(default=False)

    def status(self) -> dict[str, Any]:
        """Return what /v1/status says."""
        answer: dict[str, Any] = httpx.get(f"{self.url}/v1/status", timeout=20).raise_for_status().json()
        return answer

    def stop(self) -> None:
        """Stop the exchange, then drain and stop the rest; once."""
        if not self.stopped:
            self.stopped = True
            self.sim.stop()
            k2ray("down", self.settings.data_dir.parent)

    def cpu_s(self, status: dict[str, Any]) -> dict[str, float]:
        """Return role -> CPU seconds used so far; `ray and api` is all the rest of the system."""
        spent = {"simulator": _cpu_s(self.sim.process.pid)}
        known = {self.sim.process.pid}
        for actor in status["actors"]:
            if actor["pid"]:
                spent[actor["role"]] = spent.get(actor["role"], 0.0) + _cpu_s(actor["pid"])
                known.add(actor["pid"])
        mark = str(self.settings.data_dir)
        rest = 0.0
        for process in psutil.process_iter(["pid", "cmdline", "name"]):
            command = " ".join(process.info["cmdline"] or ())
            if process.info["pid"] in known:
                continue
            if "kafka.Kafka" in command and mark in command:
                spent["broker"] = _cpu_s(process.info["pid"])
            elif "ray" in command:
                rest += _cpu_s(process.info["pid"])
        return {**spent, "ray and api": rest}


def _cpu_s(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def k2ray(command: str, folder: Path) -> None:
    """Run a k2ray command on the system in `folder`, quietly unless it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "k2ray.cli", command, "--config", str(folder / "k2ray.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"k2ray {command} failed:\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def running_system(
    folder: Path,
    *,
    rate: float,
    symbols: Sequence[str],
    channels: Sequence[str] = ("trades",),
    connections: int = 1,
    transport: str = "websockets",
    codec: str = "arrow",
) -> Iterator[System]:
    """Run all of it in `folder` until the block ends.

    Args:
        folder: Empty; gets config, data and truth.
        rate: Trades per second of the simulated exchange.
        symbols: What it trades.
        channels: What is recorded, and generated.
        connections: WebSocket connections, each a feed actor.
        transport: `websockets` or `picows`.
        codec: How rows look in Kafka: `arrow` or `avro`.
    """
    arguments = ["--channels", ",".join(STREAMS[channel] for channel in channels)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running_sim(folder, rate=rate, symbols=symbols, arguments=arguments) as sim:
        config = sim.config(symbols=symbols, channels=channels, port=port, transport=transport, connections=connections)
        config["wire"] = {"codec": codec}
        (folder / "k2ray.yaml").write_text(yaml.safe_dump(config))
        k2ray("up", folder)
        system = System(sim, load_settings(folder / "k2ray.yaml", environ={}), f"http://127.0.0.1:{port}")
        try:
            yield system
        finally:
            system.stop()
