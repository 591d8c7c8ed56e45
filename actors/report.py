"""What `status` says: the reconciler's children and their last reports as plain values. Pure.

The keys of an actor are a contract: name, role, generation, state, pid, restarts, restarts_by (reason -> how many),
last_reason, rss_bytes, rate, lag_trades, lag_s, data_age_s, ready (whether it works on live data), release (what it
runs), replacement (the newest planned change of generation, decided or under way), memory (`actors/sampling.py`). Roles
add their own below `detail`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from actors.lives import Cause, Child, Phase
from actors.names import SUPERVISOR, ActorName
from actors.pressure import limits_of
from actors.reconciler import Reconciler
from actors.releases import running_code
from actors.sampling import MemoryReport
from actors.wanted import Wanted
from k2ray import metrics
from k2ray.settings import Memory

MEASURES = ("rss_bytes", "rate", "lag_trades", "lag_s", "data_age_s")
_HEALTH_OWN = {"pid", "node", "turn_age_s", "turn_limit_s", "ready", "overlap_s", "memory", "gaps", *MEASURES}
_REPLACEMENT_KINDS = frozenset(
    f"{reason}/{outcome}" for reason in ("memory", "leak", "deploy", "operator") for outcome in ("done", "failed")
)

_OF_ACTORS = (
    metrics.ACTOR_UP,
    metrics.ACTOR_FAILED,
    metrics.ACTOR_RESTARTS,
    metrics.ACTOR_REPLACEMENTS,
    metrics.ACTOR_REPLACING,
    metrics.ACTOR_MEMORY_LIMIT_BYTES,
)


def describe(
    reconciler: Reconciler, broker: Mapping[str, Any] | None, births: int, wanted: Wanted, own: MemoryReport
) -> dict[str, Any]:
    """Return the picture of the whole system.

    Args:
        reconciler: Who is asked.
        broker: The local broker's state; None where there is none of ours.
        births: How often a supervisor was born in this system.
        wanted: Names the releases.
        own: The supervisor's memory.
    """
    children = [child for child in reconciler.children.values() if child.wanted or child.lives]
    at_work = [life for child in children if (life := child.current) is not None]
    gaps = [gap for life in at_work for gap in life.health.get("gaps", ())]
    return {
        "level": 0,
        "actors": [_supervisor(births, wanted, own), *(_actor(child, wanted) for child in children)],
        "gaps": gaps,
        "broker": broker,
        "release": wanted.release,
        "stopping": reconciler.stopping,
        "settled": reconciler.settled,
    }


def count(reconciler: Reconciler, memory: Memory, replicas: Iterable[Mapping[str, Any]] = ()) -> None:
    """Set the gauges of all actors, so that alerts can fire on them; what may be counted is there from the start.

    Those of an actor that is not wanted any more go: nobody is to be called for what was taken away on purpose.
    """
    for replica in replicas:
        _show_limits(replica["name"], memory)
    for child in reconciler.children.values():
        if not child.wanted:
            _forget(child.logical)
            continue
        metrics.ACTOR_UP.labels(child.logical).set(child.state == "running")
        metrics.ACTOR_FAILED.labels(child.logical).set(child.state == "failed")
        for cause in Cause:
            metrics.ACTOR_RESTARTS.labels(child.logical, cause.value).set(child.restarts_by[cause])
        for kind in _REPLACEMENT_KINDS | child.replacements.keys():
            reason, outcome = kind.split("/")
            metrics.ACTOR_REPLACEMENTS.labels(child.logical, reason, outcome).set(child.replacements[kind])
        under_way = child.replacement is not None and child.replacement.under_way
        metrics.ACTOR_REPLACING.labels(child.logical).set(under_way)
        _show_limits(child.logical, memory)


def _forget(logical: str) -> None:
    for gauge in _OF_ACTORS:
        gauge.remove_by_labels({"actor": logical})


def count_supervisor(births: int, memory: Memory) -> None:
    """Set the supervisor's own gauges."""
    metrics.ACTOR_UP.labels(SUPERVISOR).set(1)
    metrics.ACTOR_RESTARTS.labels(SUPERVISOR, Cause.CRASH.value).set(births - 1)
    _show_limits(SUPERVISOR, memory)


def _show_limits(logical: str, memory: Memory) -> None:
    limits = limits_of(logical.split(":", 1)[0], memory)
    if limits is not None:
        metrics.ACTOR_MEMORY_LIMIT_BYTES.labels(logical, "soft").set(limits.soft_bytes)
        metrics.ACTOR_MEMORY_LIMIT_BYTES.labels(logical, "hard").set(limits.hard_bytes)


def _supervisor(births: int, wanted: Wanted, own: MemoryReport) -> dict[str, Any]:
    measures: dict[str, Any] = dict.fromkeys(MEASURES)
    measures["rss_bytes"] = own.rss_bytes
    return {
        "name": SUPERVISOR,
        "role": SUPERVISOR,
        "generation": births,
        "state": "running",
        "pid": os.getpid(),
        "restarts": births - 1,
        "restarts_by": {},
        "last_reason": "",
        "ready": True,
        "release": wanted.release,
        "replacement": None,
        "memory": asdict(own),
        **measures,
        "detail": {"code": running_code()},
    }


def _planned(child: Child) -> dict[str, Any] | None:
    """Return the newest planned change of generation, and whether its new generation works on live data."""
    plan = child.replacement
    if plan is None:
        return None
    life = child.lives.get(plan.generation)
    return {**asdict(plan), "ready": life is not None and life.phase is Phase.RUNNING and life.ready}


def _actor(child: Child, wanted: Wanted) -> dict[str, Any]:
    life = child.current
    health: Mapping[str, Any] = life.health if life is not None else {}
    name = life.name if life is not None else ActorName(child.logical, child.generation)
    return {
        "name": str(name),
        "role": name.role,
        "generation": name.generation,
        "state": child.state,
        "pid": life.pid if life is not None else None,
        "restarts": child.restarts,
        "restarts_by": dict(child.restarts_by),
        "last_reason": child.last_reason,
        "ready": life is not None and life.phase is Phase.RUNNING and life.ready,
        "release": wanted.named(life.release if life is not None else child.release),
        "replacement": _planned(child),
        "memory": health.get("memory"),
        **{measure: health.get(measure) for measure in MEASURES},
        "detail": {key: value for key, value in health.items() if key not in _HEALTH_OWN},
    }
