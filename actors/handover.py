"""The supervisor's status for those who may wait: while a deployment remakes it, it is away for a second or two.

Who asks through HTTP would get a 503 for no trouble at all; so the question waits, but only while a deployment is under
way: a supervisor that is gone without one is trouble, and is said at once.
"""

from __future__ import annotations

import time
from typing import Any

from actors.history import read_history
from actors.supervisor import system_status
from k2ray.errors import K2rayError, SupervisorUnavailable
from k2ray.layout import DataDir

PATIENCE_S = 30.0
"""From the old one's end to the new one's first answer: 3 s here, a multiple on a busy machine.

One that cannot be made is tried twice before the old one is brought back.
"""
PAUSE_S = 0.1


def status_through_handover(layout: DataDir, timeout_s: float) -> dict[str, Any]:
    """Ask the supervisor as `system_status` does; while a deployment is under way, ask again for a while.

    Raises:
        SupervisorUnavailable: It does not answer.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return system_status(layout.namespace, timeout_s)
        except SupervisorUnavailable:
            if time.monotonic() > deadline_s or not _deploying(layout):
                raise
            time.sleep(PAUSE_S)


def _deploying(layout: DataDir) -> bool:
    try:
        return read_history(layout).under_way is not None
    except K2rayError:
        return False
