"""A k2ray of one's own, for commands that bring it up, watch it, and take it down: `demo` and `soak`.

Its folder, port and Ray belong to nobody else. Ctrl-C becomes an exception here, and commands run in sessions of their
own, so that a signal never cuts one of them in half.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from k2ray.errors import K2rayError, TryAgain

DEFAULT_PORT = 8000
# The stop drains up to four roles in turn.
STOP_S = 180


class Stopped(Exception):
    """SIGINT or SIGTERM came."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Stopped`, once: what follows is stopping, which further ones do not disturb."""

    def stop(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_empty(folder: Path) -> None:
    """Remove an earlier run's data, and only that: a folder without our config is somebody else's."""
    config = folder / "k2ray.yaml"
    if config.exists():
        run_command("down", config, check=False, quiet=True)
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise K2rayError(f"{folder} is not empty and no earlier run's; choose another with --data-dir")
    folder.mkdir(parents=True, exist_ok=True)


def choose_port(wanted: int | None) -> int:
    """Return the port to listen on: the wanted one, else 8000, else a free one.

    Raises:
        TryAgain: There is none.
    """
    if wanted is not None:
        return wanted
    for candidate in (DEFAULT_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            chosen: int = probe.getsockname()[1]
            return chosen
    raise TryAgain("no free port on 127.0.0.1")


def run_command(command: str, config: Path, *, check: bool, quiet: bool = False) -> None:
    """Run another k2ray command in a session of its own, so that Ctrl-C does not cut it in half.

    Raises:
        K2rayError: It failed, and `check` asks.
        Stopped: A signal came meanwhile; the command was interrupted and has ended.
    """
    output = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(
        [sys.executable, "-m", "k2ray.cli", command, "--config", str(config)],
        start_new_session=True,
        stdout=output,
        stderr=output,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        status = process.wait()
    except Stopped:
        process.send_signal(signal.SIGINT)
        process.wait(STOP_S)
        raise
    if check and status:
        raise K2rayError(f"`k2ray {command}` failed with status {status}; see {config.parent / 'data' / 'logs'}")
