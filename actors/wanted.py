"""What should live, in a file: written by `k2ray up` and `down`, read by the supervisor whenever it changes.

Ray restarts a supervisor with its first constructor arguments, so what may change is read from here instead.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from k2ray.errors import OperatorNeeded


@dataclass(frozen=True)
class Release:
    """What a generation runs.

    Attributes:
        settings: `Settings.to_json()`; holds secrets.
        code: Folder that its `k2ray`, `actors` and `serve` are imported from; None: what is installed.
    """

    settings: str
    code: str | None = None


@dataclass(frozen=True)
class Wanted:
    """The wanted state.

    A generation's release has a name; the supervisor remembers which generation runs which. `release` names the base:
    `settings` and `code`, which new children run, and everybody whose own release is known neither as the base nor in
    `releases`. A deployment writes the new release as the base and the one before into `releases`: children
    that live stay on that until each is replaced (`Supervisor.replace(logical, "deploy", release=...)`).

    Attributes:
        epoch: Raised by each `k2ray up`; a new one brings failed actors back.
        settings: `Settings.to_json()` of the base release; holds secrets.
        actors: Logical name -> `module:Class` that lives it, in starting order.
        local_broker: Whether the local Kafka is to be kept alive.
        stopping: Drain everything and start nothing.
        release: The base release's name.
        code: The base release's folder of code; None: what is installed.
        releases: Name -> another release that generations run, or may be replaced with.
        runs: Logical name -> name of the release that a child without a life starts with; of others, the base.
        held: Logical names whose older generations stay, however well a newer one works, until they are let go: so
            that a group changes over as one.
    """

    epoch: int
    settings: str
    actors: dict[str, str] = field(default_factory=dict)
    local_broker: bool = False
    stopping: bool = False
    release: str = ""
    code: str | None = None
    releases: dict[str, Release] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    held: list[str] = field(default_factory=list)

    def named(self, release: str) -> str:
        """Return the name of what a generation of this release really runs: its own, or the base's."""
        return release if release in self.releases else self.release

    def contents(self, release: str) -> Release:
        """Return what a release consists of."""
        return self.releases.get(release) or Release(self.settings, self.code)


def write_wanted(run: Path, wanted: Wanted) -> None:
    """Replace the wanted state, readable by this user alone."""
    write_private(run / "wanted.json", json.dumps(asdict(wanted)))


def read_wanted(run: Path) -> Wanted | None:
    """Return the wanted state; None if nothing was ever wanted.

    Raises:
        OperatorNeeded: The file is not ours or damaged; `k2ray up` writes it anew.
    """
    path = run / "wanted.json"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        releases = {name: Release(**release) for name, release in plain.pop("releases", {}).items()}
        return Wanted(**plain, releases=releases)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        raise OperatorNeeded(f"{path}: cannot be read ({error}); `k2ray up` writes it anew") from error


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically, mode 0600: a reader sees the old or the new text, a crash leaves one of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
