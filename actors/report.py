"""What `status` says: the reconciler's children and their last reports as plain values. Pure.

The keys of an actor are a contract: name, role, generation, state, pid, restarts, last_reason, rss_bytes, rate,
lag_trades, lag_s, data_age_s, ready (whether it works on live data), release (what it runs), replacement (the newest
planned change of generation, decided or under way). Roles add their own below `detail`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import psutil

from actors.lives import Child, Phase
from actors.names import SUPERVISOR, ActorName
from actors.reconciler import Reconciler
from actors.releases import running_code
from actors.wanted import Wanted
from k2ray import metrics

MEASURES = ("rss_bytes", "rate", "lag_trades", "lag_s", "data_age_s")
_HEALTH_OWN = {"pid", "node", "turn_age_s", "turn_limit_s", "ready", "overlap_s", "gaps", *MEASURES}


def describe(reconciler: Reconciler, broker: Mapping[str, Any] | None, births: int, wanted: Wanted) -> dict[str, Any]:
    """Return the picture of the whole system.

    Args:
        reconciler: Who is asked.
        broker: The local broker's state; None where there is none of ours.
        births: How often a supervisor was born in this system.
        wanted: Names the releases.
    """
    children = [child for child in reconciler.children.values() if child.wanted or child.lives]
    at_work = [life for child in children if (life := child.current) is not None]
    gaps = [gap for life in at_work for gap in life.health.get("gaps", ())]
    return {
        "level": 0,
        "actors": [_supervisor(births, wanted), *(_actor(child, wanted) for child in children)],
        "gaps": gaps,
        "broker": broker,
        "release": wanted.release,
        "stopping": reconciler.stopping,
        "settled": reconciler.settled,
    }


def count(reconciler: Reconciler) -> None:
    """Set the gauges of all actors, so that alerts can fire on them."""
    for child in reconciler.children.values():
        if not child.wanted and not child.lives:
            continue
        metrics.ACTOR_UP.labels(child.logical).set(child.state == "running")
        metrics.ACTOR_FAILED.labels(child.logical).set(child.state == "failed")
        metrics.ACTOR_RESTARTS.labels(child.logical).set(child.restarts)
        life = child.current
        if life is not None and "rss_bytes" in life.health:
            metrics.ACTOR_RSS_BYTES.labels(child.logical).set(life.health["rss_bytes"])


def _supervisor(births: int, wanted: Wanted) -> dict[str, Any]:
    measures: dict[str, Any] = dict.fromkeys(MEASURES)
    measures["rss_bytes"] = psutil.Process().memory_info().rss
    return {
        "name": SUPERVISOR,
        "role": SUPERVISOR,
        "generation": births,
        "state": "running",
        "pid": os.getpid(),
        "restarts": births - 1,
        "last_reason": "",
        "ready": True,
        "release": wanted.release,
        "replacement": None,
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
        "last_reason": child.last_reason,
        "ready": life is not None and life.phase is Phase.RUNNING and life.ready,
        "release": wanted.named(life.release if life is not None else child.release),
        "replacement": _planned(child),
        **{measure: health.get(measure) for measure in MEASURES},
        "detail": {key: value for key, value in health.items() if key not in _HEALTH_OWN},
    }
