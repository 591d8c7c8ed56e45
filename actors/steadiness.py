"""Whether a release keeps what it promised, for a while after it took over. Pure.

Beside the old ones, new actors prove what can be proved there: a feed that its connection delivers, a writer that it
reads the table, finds its positions and reads Kafka. That a writer commits cannot be asked of it there: the old one's
batch is always due first, and the fence lets only one of the two land. So it is asked here, of the first batch after
the cut; a writer for which there is nothing to commit has looked at the table itself, and that is enough.

An actor may stop delivering for some seconds (a feed's connection is cut and comes back), not for longer.

Next in the flow: `k2ray/cli/rollout.py`, which takes a release back that does not keep it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from actors.deploy import Outcome, Verdict

PATIENCE_S = 10.0
"""How long an actor may not be at work on live data: a reconnect takes a second here, a busy machine a multiple."""


class Steadiness:
    """Looks at the actors of a release again and again.

    Args:
        wanted: All logical names of the release.
        target: Its digest.
        actors: Logical name -> its entry in the supervisor's status, as the watch begins.
        now_s: Monotonic.
        first_commit_s: How long a writer may take to its first commit.
    """

    def __init__(
        self,
        wanted: Iterable[str],
        target: str,
        actors: Mapping[str, Mapping[str, Any]],
        now_s: float,
        first_commit_s: float,
    ) -> None:
        self._wanted = list(wanted)
        self._target = target
        self._restarts = {name: actor["restarts"] for name, actor in actors.items()}
        self._commit_until_s = now_s + first_commit_s
        self._first_commit_s = first_commit_s
        self._idle_since_s: dict[str, float] = {}

    def look(self, actors: Mapping[str, Mapping[str, Any]], now_s: float) -> Verdict:
        """Say whether every actor works now; waiting: one does not yet, or for a moment; failed: one does not."""
        waiting = []
        for name in self._wanted:
            broken = self._broken(name, actors.get(name))
            if broken:
                return Verdict(Outcome.FAILED, broken)
            actor = actors[name]
            if actor["ready"]:
                self._idle_since_s.pop(name, None)
                if unproved := _uncommitted(name, actor):
                    if now_s > self._commit_until_s:
                        return Verdict(Outcome.FAILED, f"{unproved} within {self._first_commit_s:g} s")
                    waiting.append(unproved)
                continue
            since_s = self._idle_since_s.setdefault(name, now_s)
            why = f"{name} is not at work on live data{_trouble(actor)}"
            if now_s - since_s > PATIENCE_S:
                return Verdict(Outcome.FAILED, f"{why}, for more than {PATIENCE_S:g} s")
            waiting.append(why)
        return Verdict(Outcome.WAITING, "; ".join(waiting)) if waiting else Verdict(Outcome.DONE)

    def _broken(self, name: str, actor: Mapping[str, Any] | None) -> str:
        if actor is None:
            return f"{name} is gone"
        if actor["state"] != "running":
            return f"{name} is {actor['state']}: {actor['last_reason']}"
        if actor["restarts"] > self._restarts.get(name, actor["restarts"]):
            return f"{name} had to be restarted: {actor['last_reason']}"
        if actor["detail"].get("code") != self._target:
            return f"{name} runs release {actor['detail'].get('code')}"
        return ""


def _uncommitted(name: str, actor: Mapping[str, Any]) -> str:
    """Say that a writer has something to commit and has never committed; empty if it has, or nothing to."""
    detail: Mapping[str, Any] = actor["detail"]
    pending = int(detail.get("rows_pending") or 0) or int(actor.get("lag_trades") or 0)
    if not name.startswith("writer:") or detail.get("commits") != 0 or not pending:
        return ""
    return f"{name} has committed none of the rows that wait"


def _trouble(actor: Mapping[str, Any]) -> str:
    said = actor["detail"].get("trouble") or actor["detail"].get("last_close")
    return f" ({said})" if said else ""
