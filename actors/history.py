"""The history of a data folder's releases: who started which, when, and how it ended. Pure but for its one file.

| state | meaning |
|---|---|
| `under way` | being deployed, or left half-way by a dead process: `deploy` completes it, `rollback` takes it back |
| `running` | the newest one of these is what runs (or ran, when the system is down) |
| `replaced` | ran well until another one took over: what a rollback goes back to |
| `rolled back` | ran, and was taken back by a person |
| `failed` | did not take over: a green actor did not prove itself, and what ran before runs |

Next in the flow: `actors/deploy.py` plans the way from the running release to another one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from actors.wanted import write_private
from k2ray.errors import BadInput, OperatorNeeded
from k2ray.layout import DataDir

REMEMBERED = 100

UNDER_WAY, RUNNING, REPLACED, ROLLED_BACK, FAILED = "under way", "running", "replaced", "rolled back", "failed"


@dataclass(frozen=True)
class Deployment:
    """One attempt to make a release run.

    Attributes:
        digest: Which release.
        kind: `up`, `deploy` or `rollback`.
        state: See the module.
        who: user@host.
        started_at, ended_at: ISO-8601, UTC.
        step: What was being done last.
        reason: Why it failed.
    """

    digest: str
    kind: str
    state: str
    who: str
    started_at: str
    ended_at: str = ""
    step: str = ""
    reason: str = ""


class History:
    """The deployments of one data folder, the newest last.

    Args:
        deployments: As they were recorded.
    """

    def __init__(self, deployments: Sequence[Deployment] = ()) -> None:
        self.deployments = list(deployments)

    @property
    def running(self) -> str | None:
        """Digest of the release that runs; while another one is under way, of the one before it."""
        return next((one.digest for one in reversed(self.deployments) if one.state == RUNNING), None)

    @property
    def under_way(self) -> Deployment | None:
        """The deployment that was begun and not ended; None if there is none."""
        newest = self.deployments[-1] if self.deployments else None
        return newest if newest is not None and newest.state == UNDER_WAY else None

    def previous(self) -> str:
        """Return the digest that a rollback goes back to.

        Raises:
            BadInput: Nothing ran before.
        """
        if self.under_way is not None and self.running is not None:
            return self.running
        for one in reversed(self.deployments):
            if one.state == REPLACED and one.digest != self.running:
                return one.digest
        raise BadInput("no release ran well before this one: there is nothing to go back to")

    def needed(self) -> list[str]:
        """Return the digests worth keeping, the most needed first: running, under way, what can be gone back to."""
        needed = [self.running] if self.running else []
        if self.under_way is not None:
            needed.append(self.under_way.digest)
        good = [one.digest for one in reversed(self.deployments) if one.state in {RUNNING, REPLACED}]
        return list(dict.fromkeys([*needed, *good, *(one.digest for one in reversed(self.deployments))]))

    def begin(self, digest: str, kind: str, who: str, now: str) -> None:
        """Note that a deployment begins; one that was left half-way is given up for it, unless it is the same."""
        if self.under_way is not None:
            half = self.deployments.pop()
            if half.digest != digest:
                reason = f"left half-way at: {half.step}; {kind} of {digest} followed"
                self.deployments.append(replace(half, state=FAILED, reason=reason, ended_at=now))
        self.deployments.append(Deployment(digest, kind, UNDER_WAY, who, now))
        del self.deployments[:-REMEMBERED]

    def note(self, step: str) -> None:
        """Note what is being done."""
        self.deployments[-1] = replace(self._open(), step=step)

    def succeed(self, now: str) -> None:
        """The deployment under way is what runs now."""
        done = self._open()
        before = self.running
        for index, one in enumerate(self.deployments[:-1]):
            left = done.kind == "rollback" and one.digest == before and before != done.digest
            if left and one.state in {RUNNING, REPLACED}:
                # All its entries: the next rollback goes further back, not forward again.
                self.deployments[index] = replace(one, state=ROLLED_BACK)
            elif one.state == RUNNING:
                self.deployments[index] = replace(one, state=REPLACED)
        self.deployments[-1] = replace(done, state=RUNNING, ended_at=now, step="")

    def fail(self, reason: str, now: str) -> None:
        """The deployment under way did not take over."""
        self.deployments[-1] = replace(self._open(), state=FAILED, reason=reason, ended_at=now)

    def _open(self) -> Deployment:
        if self.under_way is None:
            raise BadInput("no deployment is under way")
        return self.under_way


def read_history(layout: DataDir) -> History:
    """Return what was recorded; empty where nothing ever ran.

    Raises:
        OperatorNeeded: The file is damaged.
    """
    path = _path(layout)
    try:
        return History([Deployment(**one) for one in json.loads(path.read_text(encoding="utf-8"))])
    except FileNotFoundError:
        return History()
    except (ValueError, TypeError) as error:
        raise OperatorNeeded(f"{path}: cannot be read ({error}); remove it to begin a new history") from error


def write_history(layout: DataDir, history: History) -> None:
    """Replace the record."""
    write_private(_path(layout), json.dumps([asdict(one) for one in history.deployments], indent=1) + "\n")


def _path(layout: DataDir) -> Path:
    return layout.releases / "history.json"
