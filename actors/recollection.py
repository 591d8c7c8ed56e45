"""What one supervisor remembers for the next, as plain values: generations, releases, counts, pids. Pure.

Who lives is not remembered, Ray is asked; that a generation was made is, before it is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from actors.lives import Child, Replacement
from actors.names import ActorName


@dataclass
class Known:
    """What an earlier supervisor knew of lives that may still be there.

    Attributes:
        pids: Of processes; one that does not answer can be killed by it.
        releases: What each generation runs.
    """

    pids: dict[ActorName, int] = field(default_factory=dict)
    releases: dict[ActorName, str] = field(default_factory=dict)


def remember(children: Iterable[Child]) -> dict[str, Any]:
    """Return what is to be kept of all children."""
    return {
        child.logical: {
            "generation": child.generation,
            "release": child.release,
            "restarts_by": dict(child.restarts_by),
            "replacement": asdict(child.replacement) if child.replacement else None,
            "replacements": dict(child.replacements),
            "last_reason": child.last_reason,
            "failed": child.failed,
            "pids": {str(number): life.pid for number, life in child.lives.items() if life.pid},
            "releases": {str(number): life.release for number, life in child.lives.items()},
        }
        for child in children
    }


def recall(memory: Mapping[str, Any]) -> tuple[list[Child], Known]:
    """Return the children as they were, not wanted yet and without lives, and what is known of their lives."""
    children, found = [], Known()
    for logical, known in memory.items():
        child = Child(logical, wanted=False)
        child.generation = int(known.get("generation", 0))
        child.release = str(known.get("release", ""))
        child.restarts_by.update(known.get("restarts_by", {}))
        child.replacement = Replacement(**plan) if (plan := known.get("replacement")) else None
        child.replacements.update(known.get("replacements", {}))
        child.last_reason = str(known.get("last_reason", ""))
        child.failed = bool(known.get("failed", False))
        children.append(child)
        for number, pid in known.get("pids", {}).items():
            found.pids[ActorName(logical, int(number))] = int(pid)
        for number, release in known.get("releases", {}).items():
            found.releases[ActorName(logical, int(number))] = str(release)
    return children, found
