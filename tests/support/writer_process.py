"""A writer in a process of its own, that dies or stops at a named point: python -m tests.support.writer_process JSON.

JSON: {"settings": Settings.to_json(), "bootstrap": HOST:PORT, "point": a fault point or "", "signal": KILL or STOP,
"skip": times that the point is passed first}. Drains and exits with 0 if it lives.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from k2ray.lake.writer import TableWriter
from k2ray.layout import DataDir
from k2ray.settings import Settings

ROOT = Path(__file__).parents[2]


def start_writer(
    settings: Settings, bootstrap: str, point: str = "", *, how: str = "KILL", skip: int = 0
) -> subprocess.Popen[bytes]:
    """Start a writer's process; wait for it, or for it to stop."""
    task = {"settings": settings.to_json(), "bootstrap": bootstrap, "point": point, "signal": how, "skip": skip}
    command = [sys.executable, "-m", "tests.support.writer_process", json.dumps(task)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def main(task: dict[str, str | int]) -> None:
    settings = Settings.from_json(str(task["settings"]))
    left = [int(task["skip"])]

    def fault(reached: str) -> None:
        if reached != task["point"]:
            return
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL if task["signal"] == "KILL" else signal.SIGSTOP)
        left[0] -= 1

    writer = TableWriter(settings, DataDir(settings.data_dir), "trades", str(task["bootstrap"]), faults=fault)
    assert writer.drain(60)
    writer.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
