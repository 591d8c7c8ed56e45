"""Fault points: where a chaos test may kill or stop an actor. Without its files this is one look for a file a point.

`<data_dir>/run/faults/<logical name>@<point>` holds `kill` or `stop`; the actor that passes the point takes the file
away and sends itself that signal. Whoever can write there owns the whole system anyway, so no switch guards it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from k2ray.logs import get_logger

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class FaultPoints:
    """The fault points of one actor; called with a point's name wherever the work passes one.

    Args:
        run: `DataDir.run`.
        logical: The actor's logical name.
    """

    def __init__(self, run: Path, logical: str) -> None:
        self._folder = run / "faults"
        self._logical = logical
        self._log = get_logger("actors.faults")

    def __call__(self, point: str) -> None:
        """Pass a point; does nothing unless it is armed."""
        armed = self._folder / f"{self._logical}@{point}"
        if not armed.exists():
            return
        wish = armed.read_text(encoding="utf-8").strip()
        armed.unlink()
        if wish in SIGNALS:
            self._log.warning("fault", point=point, wish=wish)
            os.kill(os.getpid(), SIGNALS[wish])
