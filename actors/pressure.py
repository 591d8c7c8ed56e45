"""What a process's memory means for it: nothing, a replacement, or an end. Pure.

- over the **hard** limit: killed and started anew at once; what it held and had not handed on is a visible gap;
- over the **soft** limit, or a leak score over its limit: replaced make before break, which loses nothing. One actor of
  the system at a time, since two generations need twice the memory, and not again soon where it does not help.

RSS counts about 60 MB of every Ray worker that all of them share.

Next in the flow: `actors/reconciler.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from k2ray.memory import MB
from k2ray.settings import Memory, MemoryLimits

MIN_AGE_S = 60.0
"""Of a supervisor or a replica that ends itself: with a limit that is too low for any, none would ever work."""


def limits_of(role: str, settings: Memory) -> MemoryLimits | None:
    """Return a role's limits; None for a role that has none."""
    limits = getattr(settings, role, None)
    return limits if isinstance(limits, MemoryLimits) else None


def too_much(role: str, health: Mapping[str, Any], settings: Memory) -> str:
    """Say that a process must end at once; empty if not."""
    limits, rss = limits_of(role, settings), int(health.get("rss_bytes") or 0)
    if limits is None or rss <= limits.hard_bytes:
        return ""
    return f"memory: {_mb(rss)} is over the hard limit of {_mb(limits.hard_bytes)}"


def worth_replacing(role: str, health: Mapping[str, Any], settings: Memory) -> tuple[str, str] | None:
    """Return reason (a metric's label) and detail of why a process is to be replaced; None if it is not."""
    limits, rss = limits_of(role, settings), int(health.get("rss_bytes") or 0)
    memory: Mapping[str, Any] = health.get("memory") or {}
    if limits is not None and rss > limits.soft_bytes:
        return "memory", f"{_mb(rss)} is over the soft limit of {_mb(limits.soft_bytes)}"
    score = float(memory.get("leak_score", 0.0))
    if memory.get("complete") and score > settings.leak_score:
        slope = float(memory.get("slope_bytes_per_hour", 0.0))
        return "leak", f"grows by {_mb(slope)} an hour (leak score {score:.2f} over {settings.leak_score:g})"
    return None


def supervisor_ends(health: Mapping[str, Any], settings: Memory, age_s: float, pause_s: float) -> str:
    """Say why the supervisor is to end itself, which is its way of being replaced; empty if it is not.

    A young one never does: with limits that are too low for any supervisor nobody would supervise.

    Args:
        health: Its own report.
        settings: Its limits.
        age_s: For how long it has lived.
        pause_s: How old it must be to go for its soft limit or a leak.
    """
    if age_s < MIN_AGE_S:
        return ""
    found = worth_replacing("supervisor", health, settings) if age_s >= pause_s else None
    return too_much("supervisor", health, settings) or (found[1] if found is not None else "")


def replica_ends(health: Mapping[str, Any], settings: Memory, age_s: float) -> str:
    """Say why a replica of the API is to be replaced by Serve; empty if it is not.

    Only at the hard limit: Serve stops a replica that calls itself unhealthy before another one is up (what it was
    asked is answered), which the soft limit is not worth. A young one never ends, as with the supervisor.

    Args:
        health: Its own report.
        settings: Its limits.
        age_s: For how long it has lived.
    """
    return too_much("api", health, settings) if age_s >= MIN_AGE_S else ""


def _mb(amount: float) -> str:
    return f"{amount / MB:,.0f} MB"
