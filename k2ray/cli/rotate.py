"""`k2ray rotate feed:binance:0`: replace a feed's connection now, make before break, and wait until that is done."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from k2ray.cli.console import step
from k2ray.cli.system import System
from k2ray.errors import BadInput, RayUnavailable, TryAgain

ANSWER_TIMEOUT_S = 20.0

DONE_TIMEOUT_S = 60.0
"""The new connection needs a second, the overlap some more; a busy exchange lets us wait for a permit."""

POLL_S = 0.25


def rotate(config: Path | None, logical: str) -> None:
    """Ask a feed to replace its connection; returns when the new one has taken over.

    Args:
        config: Settings file.
        logical: The feed's name without generation, as `k2ray status` shows it.

    Raises:
        BadInput: There is no such feed, or it has nothing to rotate.
        RayUnavailable: Nothing runs.
        TryAgain: No answer in time, or no new connection came up in time: the old one stays and goes on trying.
    """
    system = System.load(config)
    if system.cluster.running() is None:
        raise RayUnavailable("nothing runs here; start it with `k2ray up`")
    system.cluster.connect()
    from actors import edge
    from actors.names import SUPERVISOR

    supervisor = edge.find(SUPERVISOR, system.layout.namespace)
    with step(f"rotating {logical}") as current:
        try:
            answer = edge.ask(supervisor, "order", logical, "rotate", timeout_s=ANSWER_TIMEOUT_S)
        except BadInput as error:
            feeds = _feeds(edge.ask(supervisor, "status", timeout_s=ANSWER_TIMEOUT_S))
            raise BadInput(f"{error}; the feeds here are: {', '.join(feeds) or 'none'}") from None
        if "rotating" not in answer["answer"] and "under way" not in answer["answer"]:
            raise BadInput(f"{logical}: {answer['answer']}")
        before = sum(answer["rotations"].values())
        end_s = time.monotonic() + DONE_TIMEOUT_S
        while True:
            detail = _detail(edge.ask(supervisor, "status", timeout_s=ANSWER_TIMEOUT_S), logical)
            if sum(detail.get("rotations", {}).values()) > before:
                current.result = "the new connection delivers, the old one is closed"
                return
            if detail.get("reconnects", 0) > answer["reconnects"]:
                current.result = "the old connection ended by itself meanwhile; a new one takes over"
                return
            if time.monotonic() > end_s:
                why = detail.get("last_close", "")
                raise TryAgain(f"no new connection within {DONE_TIMEOUT_S:g} s ({why}); the old one stays meanwhile")
            time.sleep(POLL_S)


def _feeds(status: dict[str, Any]) -> list[str]:
    """Return the logical names of all feeds, copies included."""
    return [actor["name"].partition("#")[0] for actor in status["actors"] if actor["role"] == "feed"]


def _detail(status: dict[str, Any], logical: str) -> dict[str, Any]:
    """Return what a role adds to its actor's status."""
    for actor in status["actors"]:
        if actor["name"].partition("#")[0] == logical:
            return dict(actor["detail"])
    raise BadInput(f"{logical} lives no more")
