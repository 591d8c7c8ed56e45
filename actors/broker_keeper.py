"""Keeps the local broker alive, by its pid file: looked at from a thread, started again with backoff.

That its process is gone is seen at every turn of the supervisor, which costs nothing; that it is silent, by a look.

The broker is started by a process of its own that ends at once (`python -m actors.broker_keeper`): Ray kills a worker's
child processes with the worker, and the broker must outlive the supervisor.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from k2ray.layout import DataDir
from k2ray.log.broker import LocalBroker
from k2ray.logs import get_logger

LOOK_INTERVAL_S = 1.0
START_TIMEOUT_S = 90.0
"""A start takes 2 to 4 s here; a log that needs recovery after a kill -9 takes longer on a slow disk."""
BACKOFF_MAX_S = 30.0
SILENT_LOOKS = 20
"""About a minute: a look waits 2 s for an answer and the next one comes a second later."""


class BrokerKeeper:
    """Looks after one local broker.

    Args:
        layout: Whose broker.
        heap_bytes: Its Java heap.
    """

    def __init__(self, layout: DataDir, heap_bytes: int) -> None:
        self._layout = layout
        self._heap_bytes = heap_bytes
        self._log = get_logger("actors.broker_keeper")
        self._thread: threading.Thread | None = None
        self._next_s = 0.0
        self._failures = 0
        self._silent = 0
        self._restarts = 0
        self._alive = False
        self._reason = ""
        self._pid: int | None = None

    def tick(self, now_s: float) -> None:
        """Look after the broker if it is time; never blocks."""
        if self._thread is not None and self._thread.is_alive():
            return
        if now_s < self._next_s and not self._has_died():
            return
        self._next_s = now_s + LOOK_INTERVAL_S + min(BACKOFF_MAX_S, self._failures * 2.0)
        self._thread = threading.Thread(target=self._look, name="broker-keeper", daemon=True)
        self._thread.start()

    def status(self) -> dict[str, Any]:
        """Return what the last look saw."""
        return {"alive": self._alive, "restarts": self._restarts, "last_reason": self._reason}

    def _has_died(self) -> bool:
        """Whether the process that answered last is gone; said once."""
        if self._pid is None:
            return False
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            self._pid = None
            return True
        return False

    def _look(self) -> None:
        broker = LocalBroker(self._layout, self._heap_bytes)
        found = broker.status()
        state = found.state
        self._alive = state == "running"
        self._pid = found.address.pid if self._alive and found.address is not None else None
        if self._alive:
            self._failures = 0
            self._silent = 0
            return
        if state == "silent":
            # It may be starting, recovering its log or starved; only a long silence is held against it.
            self._silent += 1
            self._reason = f"does not answer ({self._silent} looks in a row)"
            if self._silent < SILENT_LOOKS:
                return
            broker.stop(timeout_s=5)
        self._log.warning("broker is gone: starting it", state=state)
        command = [sys.executable, "-m", "actors.broker_keeper", str(self._layout.root), str(self._heap_bytes)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            self._failures += 1
            self._reason = f"no start within {START_TIMEOUT_S:g} s"
            return
        if done.returncode == 0:
            self._restarts += 1
            self._alive = True
            self._reason = "its process was gone"
        else:
            self._failures += 1
            self._reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            self._log.error("broker not started", reason=self._reason)


def main(arguments: list[str]) -> None:
    """Start the broker of a data folder and leave it behind."""
    root, heap_bytes = arguments
    LocalBroker(DataDir(Path(root)), int(heap_bytes)).start()


if __name__ == "__main__":
    main(sys.argv[1:])
