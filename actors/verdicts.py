"""Whether a life may go on: whether it is up, answers, turns and drains in time, and does not take all memory. Pure.

Next in the flow: `actors/reconciler.py`, which kills what may not.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors import pressure, replacement
from actors.lives import Cause, Child, Life, Phase
from k2ray.settings import Memory, Supervision

LATE_STARTS_MAX = 3
"""Each start that was too slow doubles the time of the next one, so often at most.

On a starved machine (seen: load 30 on two cores) all actors needed more time than they had; killed and begun anew again
and again, none would ever have been up.
"""


@dataclass(frozen=True)
class Verdict:
    """Why a life must be killed.

    Attributes:
        cause: For counting.
        reason: For people.
    """

    cause: Cause
    reason: str


def judge(child: Child, life: Life, policy: Supervision, memory: Memory, now_s: float) -> Verdict | None:
    """Say why this life must be killed; None if it may live."""
    if too_much := pressure.too_much(life.name.role, life.health, memory):
        return Verdict(Cause.MEMORY, too_much)
    if life.phase is Phase.DRAINING:
        late = now_s - life.since_s > policy.drain_timeout_s
        return Verdict(Cause.DRAIN, f"not drained within {policy.drain_timeout_s:g} s") if late else None
    if life.phase is Phase.STARTING and not life.adopted:
        allowed_s = policy.start_timeout_s * 2 ** min(child.late_starts, LATE_STARTS_MAX)
        late = now_s - life.since_s > allowed_s
        return Verdict(Cause.START, f"not up within {allowed_s:g} s") if late else None
    if now_s - life.heard_s > policy.health_timeout_s:
        return Verdict(Cause.SILENT, f"silent for {policy.health_timeout_s:g} s")
    turn_age_s = float(life.health.get("turn_age_s", 0.0))
    if turn_age_s > float(life.health.get("turn_limit_s", policy.health_timeout_s)):
        return Verdict(Cause.STUCK, f"its loop has not turned for {turn_age_s:.0f} s")
    if overdue := replacement.overdue(child, life, policy, now_s):
        return Verdict(Cause.START, overdue)
    return None
