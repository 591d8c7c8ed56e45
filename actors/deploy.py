"""The way from what runs to another release, as moves; and what may not be moved. Pure.

Actors change in groups, make before break: a group's *green* actors (the new release) start beside the *blue* ones and
are held there until all of them work on live data; only then all of the blue ones drain at once. So a green actor that
cannot work is given up before anything was taken away, and feeds whose shares of the symbols are cut anew
(`connections`) never leave a share to nobody: every new one delivers before the first old one stops.

**Order.** Forward, whoever reads goes before whoever writes, as with schemas under BACKWARD compatibility (new code
reads what old code wrote, never the other way round): supervisor, HTTP, serializer, then who reads the log and the
table (writers, upkeep), then who produces (feeds, backfill); last, what is no longer wanted drains, producers first.
Were it the other way, an old writer would meet a new feed's records and put them aside as unreadable. The supervisor is
the first of all for the same reason that Kubernetes upgrades its control plane first: the newer side knows the older
one's habits. Backward (a rollback, or a deployment that failed) the same order is walked from its other end.

Plans start from what really runs, not from a memory of what was done: one that was interrupted is completed, or taken
back, by planning again.

Next in the flow: `k2ray/cli/rollout.py` carries the moves out; `actors/steadiness.py` judges what runs after them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from actors.names import drain_stage
from k2ray.errors import SettingsError

GROUPS = (("serializer",), ("writer", "upkeep"), ("feed", "backfill"))
"""Roles that change over together, in the order of a deployment; a role that is not named here comes first."""


class Deed(StrEnum):
    """What a move does."""

    SUPERVISOR = "supervisor"
    """End the supervisor and make one of the target release, which adopts all actors."""
    HTTP = "http"
    """Update the Serve application in place."""
    GREEN = "green"
    """Start the actors that are new, and green ones beside the blue; hold them until all work on live data."""
    CUT = "cut"
    """Let the green ones take over: the blue ones drain."""
    DRAIN = "drain"
    """Drain what is no longer wanted."""


@dataclass(frozen=True)
class Move:
    """One step of a deployment.

    Attributes:
        deed: What is done.
        new: Logical names that are started without a predecessor.
        replaced: Logical names that change their release.
        gone: Logical names that are no longer wanted.
    """

    deed: Deed
    new: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All logical names that the move is about."""
        return self.new + self.replaced + self.gone

    def __str__(self) -> str:
        match self.deed:
            case Deed.SUPERVISOR:
                return "replace the supervisor; it adopts all actors"
            case Deed.HTTP:
                return "update HTTP in place"
            case Deed.GREEN:
                beside = f"start beside the old: {', '.join(self.replaced)}" if self.replaced else ""
                return "; ".join(part for part in (beside, f"start: {', '.join(self.new)}" if self.new else "") if part)
            case Deed.CUT:
                return f"cut over, drain the old: {', '.join(self.replaced)}"
            case Deed.DRAIN:
                return f"drain, no longer wanted: {', '.join(self.gone)}"


@dataclass(frozen=True)
class Running:
    """What runs now, whatever anybody planned.

    Attributes:
        supervisor: Digest of the release that the supervisor's code is of.
        http: Digest of the one that HTTP answers with.
        actors: Logical name -> digest, of the generation that does the work.
    """

    supervisor: str
    http: str
    actors: Mapping[str, str]


def plan(running: Running, target: str, wanted: Iterable[str], *, back: bool = False) -> list[Move]:
    """Return the moves from what runs to the target release; none if it runs already.

    Args:
        running: What runs.
        target: Digest of the release to reach.
        wanted: Its logical names.
        back: Whether this goes back to an older release: the other end of the order first.
    """
    names = list(wanted)
    known = {role for group in GROUPS for role in group}
    unknown = tuple(sorted({_role(name) for name in names} - known))
    groups: list[list[Move]] = []
    if running.supervisor != target:
        groups.append([Move(Deed.SUPERVISOR)])
    if running.http != target:
        groups.append([Move(Deed.HTTP)])
    for roles in (unknown, *GROUPS):
        members = [name for name in names if _role(name) in roles]
        new = tuple(name for name in members if name not in running.actors)
        replaced = tuple(name for name in members if name in running.actors and running.actors[name] != target)
        if new or replaced:
            moves = [Move(Deed.GREEN, new, replaced)]
            if replaced:
                moves.append(Move(Deed.CUT, replaced=replaced))
            groups.append(moves)
    if back:
        groups.reverse()
    moves = [move for group in groups for move in group]
    gone = sorted((name for name in running.actors if name not in names), key=lambda name: drain_stage(_role(name)))
    drains = [
        Move(Deed.DRAIN, gone=tuple(name for name in gone if _role(name) == role))
        for role in dict.fromkeys(map(_role, gone))
    ]
    # Whatever the direction: before anything stops for good, all that follows it works. The supervisor may be older
    # than what it drains, so going back it stays the last.
    if back and moves and moves[-1].deed is Deed.SUPERVISOR:
        return [*moves[:-1], *drains, moves[-1]]
    return [*moves, *drains]


def _role(logical: str) -> str:
    return logical.split(":", 1)[0]


# --- settings

FIXED = {
    "data_dir": "is where the system lives: `k2ray down`, move the folder, `k2ray up`",
    "ray": "is read when Ray starts: `k2ray down`, then `k2ray up`",
    "kafka.bootstrap_servers": "names the log that all offsets are of: another Kafka is another system, with a "
    "data_dir and a namespace of its own",
    "kafka.topic_prefix": "names the log that all offsets are of: other topics are another system, with a data_dir "
    "and a namespace of its own",
    "kafka.partitions": "is chosen once: an instrument never changes its partition, or two writers' ledgers would "
    "judge it; a system with more is a new one, with a data_dir and a namespace of its own",
    "kafka.heap_bytes": "is read when the local broker starts: `k2ray down`, then `k2ray up`",
    "lake.catalog": "names the tables: `k2ray down`, move them, then `k2ray up`",
    "lake.warehouse": "is where the tables' files are: `k2ray down`, move them, then `k2ray up`",
    "lake.namespace": "names the tables: `k2ray down`, move them, then `k2ray up`",
    "api.host": "is bound when HTTP starts: `k2ray down`, then `k2ray up`",
    "api.port": "is bound when HTTP starts: `k2ray down`, then `k2ray up`",
}
"""Settings that no deployment may change, and what to do instead."""


@dataclass(frozen=True)
class Change:
    """A setting that differs: its dotted name, and both values (None: not there)."""

    name: str
    old: Any
    new: Any


def changes(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> list[Change]:
    """Return what differs between two settings' plain values, at their leaves."""
    found: list[Change] = []
    for key in sorted({*old, *new}):
        name = f"{above}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += changes(before, after, f"{name}.")
        elif before != after:
            found.append(Change(name, before, after))
    return found


def refuse_fixed(differing: Sequence[Change]) -> None:
    """Pass if a deployment may change all of these.

    Raises:
        SettingsError: It may not; names each, and what to do instead.
    """
    refused = [
        f"{change.name}: {advice}"
        for change in differing
        for name, advice in FIXED.items()
        if change.name == name or change.name.startswith(f"{name}.")
    ]
    if refused:
        raise SettingsError("a deployment cannot change:\n  " + "\n  ".join(refused))


# --- verdicts


class Outcome(StrEnum):
    """How a move stands."""

    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Verdict:
    """How a move stands, and why, for people."""

    outcome: Outcome
    reason: str = ""


def judge(move: Move, actors: Mapping[str, Mapping[str, Any]], target: str, generations: Mapping[str, int]) -> Verdict:
    """Say how a move on actors stands.

    Args:
        move: `GREEN`, `CUT` or `DRAIN`.
        actors: Logical name -> its entry in the supervisor's status.
        target: Digest of the release to reach.
        generations: Logical name -> the generation that was started for this move; of a child that had no life to
            stand beside, and simply starts, none.
    """
    if move.deed is Deed.DRAIN:
        left = [name for name in move.gone if name in actors]
        return Verdict(Outcome.WAITING, f"{', '.join(left)} still drains") if left else Verdict(Outcome.DONE)
    waiting = []
    for name in (*move.new, *move.replaced):
        actor = actors.get(name)
        if actor is None:
            waiting.append(f"{name} is not listed yet")
            continue
        verdict = _judge_one(name, actor, target, generations.get(name), cut=move.deed is Deed.CUT)
        if verdict.outcome is Outcome.FAILED:
            return verdict
        if verdict.outcome is Outcome.WAITING:
            waiting.append(verdict.reason)
    return Verdict(Outcome.WAITING, "; ".join(waiting)) if waiting else Verdict(Outcome.DONE)


def _judge_one(name: str, actor: Mapping[str, Any], target: str, generation: int | None, *, cut: bool) -> Verdict:
    if actor["state"] == "failed":
        return Verdict(Outcome.FAILED, f"{name} was given up: {actor['last_reason']}")
    takes_over = actor["state"] == "running" and actor["ready"] and actor["detail"].get("code") == target
    planned = actor["replacement"]
    if generation is not None and planned is not None and planned["generation"] == generation:
        if planned["outcome"] == "failed":
            return Verdict(Outcome.FAILED, f"{name}#{generation}: {planned['why']}")
        if planned["outcome"] == "under way":
            if planned["ready"] and not cut:
                return Verdict(Outcome.DONE)
            todo = "has not taken over yet" if planned["ready"] else "does not work on live data yet"
            return Verdict(Outcome.WAITING, f"{name}#{generation} {todo}")
    if takes_over:
        return Verdict(Outcome.DONE)
    state = actor["state"] if actor["state"] != "running" else "not at work on live data"
    return Verdict(Outcome.WAITING, f"{name} is {state} ({actor['last_reason'] or 'no trouble known'})")
