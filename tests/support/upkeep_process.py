"""Upkeep in a process of its own, that dies or stops at a named point: python -m tests.support.upkeep_process JSON.

JSON: {"settings": Settings.to_json(), "now_us": what its clock says, "point": a fault point or "", "signal": KILL or
STOP, "looks": how often it looks}. Exits with 0 if it lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from k2ray.clock import ManualClock
from k2ray.errors import TryAgain
from k2ray.lake.upkeep import TableUpkeep
from k2ray.layout import DataDir
from k2ray.settings import Settings

ROOT = Path(__file__).parents[2]


def start_upkeep(
    settings: Settings, now_us: int, point: str = "", *, how: str = "KILL", looks: int = 2
) -> subprocess.Popen[bytes]:
    """Start upkeep's process; wait for it, or for it to stop."""
    task = {"settings": settings.to_json(), "now_us": now_us, "point": point, "signal": how, "looks": looks}
    command = [sys.executable, "-m", "tests.support.upkeep_process", json.dumps(task)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def main(task: dict[str, str | int]) -> None:
    settings = Settings.from_json(str(task["settings"]))

    stopped: list[str] = []

    def fault(reached: str) -> None:
        if reached == task["point"] and not stopped:  # once: whoever wakes meets the point again when it retries
            stopped.append(reached)
            os.kill(os.getpid(), signal.SIGKILL if task["signal"] == "KILL" else signal.SIGSTOP)

    clock = ManualClock(now_us=int(task["now_us"]))
    upkeep = TableUpkeep(settings, DataDir(settings.data_dir), "trades", clock=clock, faults=fault)
    for _ in range(int(task["looks"])):
        with contextlib.suppress(TryAgain):  # as the actor does
            upkeep.step()
    upkeep.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
