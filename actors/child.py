"""What every supervised actor has in common: an idempotent `run()`, a health report, a drain. A plain class.

`run()` starts the work at the first call and attaches to it at every later one, so that a restarted supervisor calls it
again without disturbing anything. `health()` is answered from threads of its own: it may only read.

Not its job: being made remote (`actors/edge.py`), being restarted (`actors/supervisor.py`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from typing import Any

from prometheus_client import generate_latest

from actors.names import ActorName
from actors.placement import own_node
from actors.releases import running_code
from actors.sampling import MemorySampler, as_health
from k2ray.errors import BadInput, SettingsError
from k2ray.layout import DataDir
from k2ray.logs import configure_logs, get_logger
from k2ray.settings import Settings


def pid_space() -> str:
    """Return where this process's pid means something: host and pid namespace. Signals reach no further."""
    try:
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


class Child:
    """A process with a name, work to do until told otherwise, and a report.

    Args:
        name: `role:what#generation`.
        settings_json: All settings, as `Settings.to_json` gives them: actors have the raylet's environment, not ours.
    """

    turn_limit_s = 30.0
    """How old the last turn of the main loop may be before the supervisor takes it for stuck."""

    overlap_s = 0.0
    """How long a new generation works beside the old one, once it is ready, before the old one is drained."""

    def __init__(self, name: str, settings_json: str) -> None:
        self.name = ActorName.parse(name)
        self.settings = Settings.from_json(settings_json)
        self.layout = DataDir(self.settings.data_dir)
        configure_logs(self.layout.logs, name)
        self.log = get_logger("actors").bind(role=self.name.role)
        self.stopping = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self.memory = MemorySampler(self.settings.memory)
        self.memory.start()
        self._turned_s = time.monotonic()
        self._turned = False

    @property
    def bootstrap(self) -> str:
        """Kafka's address; whoever made the wanted state has filled in a local broker's."""
        servers = self.settings.kafka.bootstrap_servers
        if servers is None:
            raise SettingsError("kafka.bootstrap_servers: an actor is told where Kafka is, it does not look")
        return servers

    async def run(self) -> None:
        """Work until drained; every caller sees the same end, and the real exception."""
        if self._task is None:
            self.log.info("run")
            self._task = asyncio.create_task(self.main())
        await asyncio.shield(self._task)

    async def main(self) -> None:
        """Do the work; return soon after `stopping` is set."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Tell the work to finish what it holds and end; returns at once, `run()` returns when it has."""
        self.log.info("drain")
        self.stopping.set()

    async def health(self) -> dict[str, Any]:
        """Report: pid, where it means something, Ray node, memory, age of the main loop's last turn, the role's own."""
        return {
            "pid": os.getpid(),
            "node": pid_space(),
            "ray_node": own_node(),
            **as_health(self.memory.report()),
            "turn_age_s": time.monotonic() - self._turned_s,
            "turn_limit_s": self.turn_limit_s,
            "ready": self.ready(),
            "code": running_code(),
            "overlap_s": self.overlap_s,
            **self.report(),
        }

    def ready(self) -> bool:
        """Whether it works on live data, so that an older generation may stop; by default once its loop turns.

        Called from another thread, so it only reads. Roles override it; while it says no, a replacement waits for up to
        `supervision.start_timeout_s` and is then given up.
        """
        return self._turned

    async def order(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Carry out an operator's order (`Supervisor.order`), in the main event loop; roles say which they take.

        Returns:
            What to tell the operator, as plain values.

        Raises:
            BadInput: This role takes no such order.
        """
        raise BadInput(f"a {self.name.role} takes no order {order!r}")

    async def metrics(self) -> str:
        """Return this process's metrics in Prometheus' text format."""
        return generate_latest().decode()

    def report(self) -> dict[str, Any]:
        """Return the role's own numbers; called from another thread, so it only reads."""
        return {}

    def turn(self) -> None:
        """Note that the main loop is turning."""
        self._turned_s = time.monotonic()
        self._turned = True
