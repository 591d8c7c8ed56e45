"""One namespace of the session's Ray with a supervisor of small children (`dummies.py`), told what to do by files."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from actors import edge
from actors.names import SUPERVISOR
from actors.supervisor import system_status
from actors.wanted import Wanted, write_wanted
from k2ray.errors import SupervisorUnavailable
from k2ray.layout import DataDir
from k2ray.settings import Settings
from tests.support.dummies import DUMMY
from tests.support.eventually import eventually
from tests.support.ray_cluster import SmallCluster

QUICK = {
    "health_interval_s": 0.3,
    "health_timeout_s": 3,
    "start_timeout_s": 30,
    "drain_timeout_s": 4,
    "crash_loop_restarts": 3,
    "crash_loop_s": 60,
}


class DummySystem:
    """One namespace with a supervisor of dummies."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.layout = DataDir(settings.data_dir)
        self.epoch = 0

    def up(self, *actors: str) -> None:
        self.epoch += 1
        write_wanted(self.layout.run, Wanted(self.epoch, self.settings.to_json(), dict.fromkeys(actors, DUMMY)))
        edge.start_supervisor(self.layout.namespace, str(self.layout.root))

    def stop(self) -> None:
        wanted = Wanted(self.epoch, self.settings.to_json(), {}, stopping=True)
        write_wanted(self.layout.run, wanted)

    def tell(self, logical: str, wish: str) -> None:
        path = self.layout.root / "dummy" / logical
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wish)

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call the supervisor."""
        supervisor = edge.find(SUPERVISOR, self.layout.namespace)
        return edge.ask(supervisor, method, *arguments, timeout_s=30, **named)

    def status(self) -> dict[str, Any]:
        try:
            return system_status(self.layout.namespace, 5)
        except SupervisorUnavailable:
            return {"actors": [], "settled": False}

    def actor(self, logical: str) -> dict[str, Any]:
        return next((a for a in self.status()["actors"] if a["name"].split("#")[0] == logical), {})

    def runs(self, name: str) -> Callable[[], dict[str, Any]]:
        def look() -> dict[str, Any]:
            actor = self.actor(name.split("#")[0])
            matches = actor.get("name") == name and actor["state"] == "running"
            return actor if matches else {}

        return look


@contextlib.contextmanager
def dummy_system(ray: SmallCluster, folder: Path, **sections: Any) -> Iterator[DummySystem]:
    """Run a system below `folder`; nothing of it lives afterwards.

    Args:
        ray: The session's cluster.
        folder: Its data_dir.
        sections: Settings; `supervision` adds to `QUICK`.
    """
    sections["supervision"] = QUICK | sections.get("supervision", {})
    system = DummySystem(ray.settings(folder, **sections))
    try:
        yield system
    finally:
        _end(system)


def _end(system: DummySystem) -> None:
    pids = [actor["pid"] for actor in system.status()["actors"] if actor["pid"]]
    with contextlib.suppress(SupervisorUnavailable):
        edge.find(SUPERVISOR, system.layout.namespace)
        edge.kill(SUPERVISOR, system.layout.namespace, None, None)
    for name in edge.list_children(system.layout.namespace):
        edge.kill(str(name), system.layout.namespace, None, None)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    eventually(lambda: not any(psutil.pid_exists(pid) and edge.is_actor_process(pid) for pid in pids), "actors gone")
