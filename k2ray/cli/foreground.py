"""`k2ray up --foreground`: up, wait for SIGINT or SIGTERM, down; for containers and process managers.

Both are commands of their own, in sessions of their own: Ray puts its own handlers on SIGTERM into every process that
connects to it, and Ctrl-C at a terminal must reach this process alone, which stops things in order.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from k2ray.cli.console import say
from k2ray.errors import TryAgain


def stay_up(config: Path | None) -> None:
    """Bring the system up, stay until a signal comes, and drain it.

    Raises:
        TryAgain: `up` or `down` failed; its own output says why.
    """
    stop = {signal.SIGINT, signal.SIGTERM}
    # Blocked from the start: a signal during `up` waits, and the system is drained as soon as it is up.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    _run("up", config)
    say("Running in the foreground; Ctrl-C drains and stops.")
    signal.sigwait(stop)
    _run("down", config)


def _run(command: str, config: Path | None) -> None:
    arguments = [sys.executable, "-m", "k2ray.cli", command]
    if config is not None:
        arguments += ["--config", str(config)]
    sys.stdout.flush()
    # The mask is inherited, and the child must be interruptible.
    done = subprocess.run(arguments, start_new_session=True, check=False, preexec_fn=_unblock)
    if done.returncode:
        raise TryAgain(f"`k2ray {command}` failed with status {done.returncode}")


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
