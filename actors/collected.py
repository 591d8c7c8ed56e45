"""Whose metrics are shown under which name: the newest text of each life, and slots for the API's replicas. Pure.

- A logical name's series are those of its newest generation that has answered. An older one that still lives beside it
  is shown too, marked as leaving (`exposition.LEAVING`): its last counts are not lost, and no series ever jumps to and
  fro between two processes.
- A life that does not answer in time is shown as it was, for a while: a busy actor must not blink. How old its text is
  has a metric of its own.
- The API's replicas have random names (`<id>/<pid>`), and a load balancer chooses who is asked. Each reports to the
  supervisor and gets a slot (`api:0`, `api:1`): every answer shows all of them, and a year of deployments leaves a
  handful of names.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from actors.names import ActorName

KEPT_S = 15.0
"""How long a text is shown after its process stopped answering; the supervisor has replaced a dead one long before."""

REPLICA_KEPT_S = 30.0
"""Replicas report every few seconds; one that has not for this long is gone, and its slot is free."""


_RSS = re.compile(r"^k2ray_actor_rss_bytes (\S+)$", re.MULTILINE)


@dataclass
class _Text:
    text: str
    at_s: float


class Collected:
    """The newest texts."""

    def __init__(self) -> None:
        self._lives: dict[ActorName, _Text] = {}
        self._slots: dict[int, str] = {}
        self._replicas: dict[str, _Text] = {}

    def note(self, name: ActorName, text: str, now_s: float) -> None:
        """Take a life's text."""
        self._lives[name] = _Text(text, now_s)

    def keep(self, living: Container[ActorName]) -> None:
        """Forget the lives that are over."""
        self._lives = {name: found for name, found in self._lives.items() if name in living}

    def note_replica(self, replica: str, text: str, now_s: float) -> str:
        """Take a replica's text and return the name under which it is shown."""
        self._replicas[replica] = _Text(text, now_s)
        self._free_slots(now_s)
        slot = next((number for number, holder in self._slots.items() if holder == replica), None)
        if slot is None:
            slot = next(number for number in range(len(self._slots) + 1) if number not in self._slots)
            self._slots[slot] = replica
        return _slot_name(slot)

    def texts(self, now_s: float) -> dict[str, str]:
        """Return what is to be shown: logical name (with its generation if it leaves) or slot -> text."""
        self._free_slots(now_s)
        shown = {}
        newest: dict[str, int] = {}
        for name in self._lives:
            newest[name.logical] = max(name.generation, newest.get(name.logical, 0))
        for name, found in sorted(self._lives.items()):
            if now_s - found.at_s <= KEPT_S:
                leaves = name.generation < newest[name.logical]
                shown[str(name) if leaves else name.logical] = found.text
        return shown | {_slot_name(slot): self._replicas[holder].text for slot, holder in self._held()}

    def replicas(self, now_s: float) -> list[dict[str, Any]]:
        """Return the API's replicas, by slot: `name`, `pid` (None if it does not say), `rss_bytes`."""
        self._free_slots(now_s)
        return [_replica(_slot_name(slot), holder, self._replicas[holder].text) for slot, holder in self._held()]

    def _held(self) -> list[tuple[int, str]]:
        return sorted(self._slots.items())

    def ages_s(self, now_s: float) -> dict[str, float]:
        """Return how old each name's newest text is, also of those that are not shown any more."""
        ages = {name.logical: now_s - found.at_s for name, found in sorted(self._lives.items())}
        return ages | {_slot_name(slot): now_s - self._replicas[holder].at_s for slot, holder in self._slots.items()}

    def _free_slots(self, now_s: float) -> None:
        self._replicas = {
            replica: found for replica, found in self._replicas.items() if now_s - found.at_s <= REPLICA_KEPT_S
        }
        self._slots = {slot: holder for slot, holder in self._slots.items() if holder in self._replicas}


def _replica(name: str, holder: str, text: str) -> dict[str, Any]:
    pid = holder.rpartition("/")[2]
    rss = _RSS.search(text)
    return {
        "name": name,
        "pid": int(pid) if pid.isdecimal() else None,
        "rss_bytes": int(float(rss[1])) if rss is not None else None,
    }


def _slot_name(slot: int) -> str:
    return f"api:{slot}"
