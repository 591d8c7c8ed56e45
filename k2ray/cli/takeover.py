"""One attempt to make a release run: the moves, the watch, and the way back when either fails.

Next in the flow: `k2ray/cli/rollout.py` makes the moves.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors import edge
from actors.history import History, write_history
from actors.releases import StoredRelease, now
from k2ray.cli.console import complain
from k2ray.cli.rollout import Rollout
from k2ray.cli.system import System
from k2ray.errors import K2rayError, OperatorNeeded


def take_over(
    rollout: Rollout,
    system: System,
    history: History,
    target: StoredRelease,
    blue: StoredRelease | None,
    others: Sequence[StoredRelease],
    *,
    back: bool,
) -> None:
    """Move to the target and watch it; when anything fails, move back to what ran before.

    Args:
        rollout: Makes the moves.
        system: Whose.
        history: With this deployment begun.
        target: The release to reach.
        blue: What to go back to; None if nothing is known.
        others: Every release that something may run now.
        back: Whether the target is an older one.

    Raises:
        OperatorNeeded: It failed; the message says why, and whether what ran before runs again.
    """
    layout = system.layout
    try:
        rollout.go(target, others, back=back)
        rollout.watch(target, system.settings.deploy.watch_s)
    except (K2rayError, KeyboardInterrupt, *edge.RAY_ERRORS) as error:
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else _said(error)
        complain(f"release {target.digest} did not take over: {why}")
        if blue is None:
            history.note(f"failed: {why}")
            write_history(layout, history)
            raise OperatorNeeded(f"{why}; nothing else is known to go back to. The same command tries again") from error
        try:
            _take_back(rollout, blue, [target, *others])
        except (K2rayError, *edge.RAY_ERRORS) as worse:
            history.note(f"taking back failed: {_said(worse)}")
            write_history(layout, history)
            raise OperatorNeeded(
                f"{why}; and going back to release {blue.digest} failed: {_said(worse)}. `k2ray rollback` tries again"
            ) from error
        history.fail(why, now())
        write_history(layout, history)
        raise OperatorNeeded(
            f"rolled back to release {blue.digest}, which runs as before. The reason: {why}"
        ) from error
    rollout.finish(target)
    history.succeed(now())
    write_history(layout, history)


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, K2rayError) else edge.first_line(error)


def _take_back(rollout: Rollout, blue: StoredRelease, others: Sequence[StoredRelease]) -> None:
    complain(f"going back to release {blue.digest}")
    rollout.revive_supervisor(blue)
    rollout.go(blue, others, back=True)
    rollout.finish(blue)
