"""One running system as the commands see it: its settings, its folder, its Ray, and the file that says what is up."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from actors.cluster import RayCluster
from actors.wanted import write_private
from k2ray.errors import TryAgain
from k2ray.layout import DataDir
from k2ray.settings import Settings, load_settings

HTTP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class System:
    """Where a system lives and how it is reached.

    Attributes:
        settings: As loaded; a local broker's address is not in them.
        layout: Its folder.
        cluster: Its Ray.
    """

    settings: Settings
    layout: DataDir
    cluster: RayCluster

    @classmethod
    def load(cls, config: Path | None) -> System:
        """Read the settings and look at nothing else."""
        return cls.of(load_settings(config))

    @classmethod
    def of(cls, settings: Settings) -> System:
        """Return the system of these settings."""
        layout = DataDir(settings.data_dir)
        return cls(settings, layout, RayCluster(settings, layout))

    @property
    def api_url(self) -> str:
        """Where the API is for clients on this machine."""
        host = self.settings.api.host
        return f"http://{'127.0.0.1' if host in {'0.0.0.0', '::'} else host}:{self.settings.api.port}"

    def ready(self) -> bool:
        """Whether our API says that it is ready."""
        try:
            return httpx.get(f"{self.api_url}/ready", timeout=HTTP_TIMEOUT_S).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def read_up(self) -> dict[str, Any] | None:
        """Return what the last `up` wrote down; None if nothing is up."""
        try:
            known: dict[str, Any] = json.loads((self.layout.run / "up.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return known

    def write_up(self, known: dict[str, Any]) -> None:
        """Write down what is up, for `status`, `down` and people."""
        write_private(self.layout.run / "up.json", json.dumps(known, indent=2) + "\n")

    def is_changed(self) -> bool:
        """Whether a command is changing this folder's system now."""
        try:
            with (self.layout.run / "command.lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other commands that change this folder's system out meanwhile.

        Raises:
            TryAgain: One is at work.
        """
        self.layout.run.mkdir(parents=True, exist_ok=True)
        with (self.layout.run / "command.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TryAgain(
                    f"another `k2ray up`, `down`, `deploy` or `rollback` is at work in {self.layout.root}"
                ) from None
            yield
