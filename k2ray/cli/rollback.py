"""`k2ray rollback`: an earlier release runs again, its code and its settings, by the same moves in the other direction.

Without `--to` that is the newest release that ran well before the present one; while a deployment is left half-way, the
one that ran before it.
"""

from __future__ import annotations

from pathlib import Path

from actors.deploy import changes, refuse_fixed
from actors.releases import library_changes
from k2ray.cli.console import complain, say
from k2ray.cli.deploy import describe, move_to, stand
from k2ray.cli.system import System


def rollback(config: Path | None, *, to: str | None) -> None:
    """Go back to an earlier release.

    Args:
        config: The settings file; says only where the system lives, its other settings are the release's own.
        to: Digest or its beginning; None: the one before.

    Raises:
        BadInput: There is no such release, or none to go back to.
        OperatorNeeded: It failed; the message says why, and what runs now.
    """
    system = System.load(config)
    with system.alone():
        standing = stand(system)
        target = standing.store.open(to if to is not None else standing.history.previous())
        for line in library_changes(target):
            complain(f"a library is not the one that release {target.digest} was made with: {line}")
        if standing.blue is not None and standing.blue.digest != target.digest:
            differing = changes(standing.blue.settings(), target.settings())
            refuse_fixed(differing)
            for line in describe(differing):
                say(f"  {line}")
        move_to(standing, target, "rollback", back=True)
        if target.settings() != system.settings.model_dump(mode="json"):
            say(
                "The settings file says otherwise: the next `k2ray deploy` brings its settings, and the installed code."
            )
