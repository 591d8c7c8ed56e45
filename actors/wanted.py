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
class Wanted:
    """The wanted state.

    Attributes:
        epoch: Raised by each `k2ray up`; a new one brings failed actors back.
        settings: `Settings.to_json()` of what the actors run with; holds secrets.
        actors: Logical name -> `module:Class` that lives it, in starting order.
        local_broker: Whether the local Kafka is to be kept alive.
        stopping: Drain everything and start nothing.
    """

    epoch: int
    settings: str
    actors: dict[str, str] = field(default_factory=dict)
    local_broker: bool = False
    stopping: bool = False


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
        return Wanted(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
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
