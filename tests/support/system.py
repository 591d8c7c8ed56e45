"""A whole system for tests: a data folder with its k2ray.yaml, and the `k2ray` command run as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from k2ray.layout import DataDir
from k2ray.settings import Settings, load_settings
from tests.support.moved import note_text
from tests.support.sim import Sim

COMMAND_TIMEOUT_S = 600
"""Ends what hangs. `up` takes 15 s on an idle machine, and five minutes were seen at load 25."""


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class System:
    """A folder with a config file.

    Attributes:
        folder: Where k2ray.yaml lies.
        port: The API's.
        environment: More variables for the commands.
        code: Folder whose packages the commands import; None: those of this checkout.
    """

    folder: Path
    port: int
    environment: dict[str, str]
    code: Path | None = None

    @property
    def config(self) -> Path:
        return self.folder / "k2ray.yaml"

    @property
    def settings(self) -> Settings:
        return load_settings(self.config, environ={})

    @property
    def layout(self) -> DataDir:
        return DataDir(self.settings.data_dir)

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a `k2ray` command."""
        return subprocess.Popen(
            [sys.executable, "-m", "k2ray.cli", *arguments, "--config", str(self.config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**_plain_environment(), **self.environment},
            cwd=self.code,
        )

    def run(self, *arguments: str) -> Done:
        """Run a `k2ray` command to its end."""
        with self.popen(*arguments) as process:
            out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
        return Done(process.returncode, out, err)

    def status(self) -> dict[str, Any]:
        """Return `k2ray status --json`, with its exit status as `exit`."""
        done = self.run("status", "--json")
        return {**json.loads(done.out), "exit": done.status}

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        """Ask the API."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}{path}", params=parameters, timeout=20)
        if path == "/metrics":
            note_text(answer.text, str(self.folder))
        return answer

    def processes(self) -> list[psutil.Process]:
        """Return the living processes that name this folder or its Ray folder."""
        marks = (str(self.layout.root), str(self.layout.ray_temp))
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(mark in part for part in process.cmdline() for mark in marks):
                    found.append(process)
        return found


def _plain_environment() -> dict[str, str]:
    """Return this process's environment without what tests put there: a user's shell has none of it."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "K2RAY_", "PYTHONWARNINGS"))
    }


@contextlib.contextmanager
def a_system(
    folder: Path, sim: Sim, port: int, environment: dict[str, str] | None = None, **sections: Any
) -> Iterator[System]:
    """Write a config for `sim`; whatever was brought up is down again at the end.

    Args:
        folder: Gets k2ray.yaml and the data.
        sim: The exchange.
        port: The API's.
        environment: More variables for the commands.
        sections: Overrides of the config's sections.
    """
    config = {
        "data_dir": "./data",
        "tls": {"ca_file": str(sim.ca_file)},
        "ray": {"dashboard": False, "num_cpus": 2, "object_store_bytes": 100_000_000},
        "exchanges": {"binance": {"ws_url": sim.ws_url, "rest_url": sim.rest_url, "channels": ["trades", "quotes"]}},
        "lake": {"commit": {"interval_s": 1}},
        "api": {"port": port},
        **sections,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "k2ray.yaml").write_text(yaml.safe_dump(config))
    system = System(folder, port, environment or {})
    try:
        yield system
    finally:
        system.run("down")
