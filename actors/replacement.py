"""Make before break: which of several generations works on, which is drained, which is given up. Pure.

While two generations of a child live, whoever made the second (a planned replacement, or a supervisor that was killed
in the middle of one):

1. the newest one that has proved itself takes over: it says that it works on live data, and has done so beside the
   older ones for as long as it asks for (`overlap_s`: a feed's two connections may be some messages apart). Older ones
   are drained; while the child is held (a deployment changes a group over as one), both work on;
2. one that does not prove itself within the start timeout, or dies, is given up: the old one works on, undisturbed;
   of one that was only planned when a supervisor was killed, the next one makes another;
3. if the old one dies meanwhile, the new one is all there is and is treated like any other.

Next in the flow: `actors/reconciler.py`, which calls this for each child.
"""

from __future__ import annotations

import dataclasses

from actors.lives import Child, Life, Phase, Replacement
from k2ray.settings import Supervision

PAUSE_MAX_S = 86_400.0
"""A replacement that does not help is not tried more often than once a day in the end."""


def refusal(child: Child) -> str:
    """Say why a child cannot be replaced now; empty if it can."""
    if not child.wanted:
        return "it is not wanted"
    if child.replacement is not None and child.replacement.under_way:
        return f"a replacement ({child.replacement.reason}) is under way"
    if len([life for life in child.lives.values() if life.phase is not Phase.DRAINING]) > 1:
        return "two generations live already"
    life = child.current
    if life is not None and life.phase is not Phase.RUNNING:
        return f"it is {life.phase}"
    return ""


def begin(child: Child, reason: str, detail: str, release: str | None) -> bool:
    """Note that the child is to be replaced; returns whether a new generation is to be started now.

    Without a living generation there is nothing to be beside: the next start simply runs the release.
    """
    wanted = child.release if release is None else release
    if child.current is None:
        child.release = wanted
        child.failed = False
        child.crashes.clear()
        child.start_at_s = 0.0
        return False
    child.replacement = Replacement(child.generation + 1, reason, detail, wanted)
    return True


def resume(child: Child) -> bool:
    """Begin again what an earlier supervisor had begun; returns whether a new generation is to be started now.

    It may have been killed after it wrote the plan down and before the actor was made. Whether that is so, or the new
    generation died while nobody looked, cannot be told apart; a second try of what cannot work ends as the first did.
    """
    plan = child.replacement
    if plan is None or not plan.under_way or plan.generation in child.lives or child.current is None:
        return False
    child.replacement = dataclasses.replace(plan, generation=child.generation + 1)
    return True


def is_proving(child: Child, life: Life) -> bool:
    """Whether an older generation works, so that this one's end disturbs nothing."""
    return any(number < life.name.generation and other.phase is Phase.RUNNING for number, other in child.lives.items())


def superseded(child: Child, now_s: float) -> list[Life]:
    """Return the lives to drain: all that are older than the newest one that has proved itself."""
    if child.held:
        return []
    proved = [number for number, life in child.lives.items() if _has_proved(life, now_s)]
    keep = max(proved, default=0)
    return [life for number, life in child.lives.items() if number < keep and life.phase is not Phase.DRAINING]


def _has_proved(life: Life, now_s: float) -> bool:
    if life.phase is not Phase.RUNNING or life.ready_s is None:
        return False
    return now_s - life.ready_s >= float(life.health.get("overlap_s", 0.0))


def overdue(child: Child, life: Life, policy: Supervision, now_s: float) -> str:
    """Say that a life which proves itself beside an older one takes too long; empty if it does not."""
    if life.phase is Phase.RUNNING and not life.ready and is_proving(child, life):
        spent = now_s - life.started_s
        return f"not ready within {policy.start_timeout_s:g} s" if spent > policy.start_timeout_s else ""
    return ""


def settle(child: Child, policy: Supervision, now_s: float) -> None:
    """Decide a replacement whose new generation works alone, or is gone."""
    plan = child.replacement
    if plan is None or not plan.under_way:
        return
    life = child.lives.get(plan.generation)
    if life is None:
        give_up(child, child.last_reason or "it ended", policy, now_s)
        return
    alone = not any(other.phase is not Phase.DRAINING for other in child.lives.values() if other is not life)
    if alone and life.phase is Phase.RUNNING:
        _conclude(child, plan, "done", "")
        child.release = plan.release
        _pause(child, policy, now_s)
    elif life.phase is Phase.DRAINING:
        give_up(child, "it was told to drain", policy, now_s)


def give_up(child: Child, why: str, policy: Supervision, now_s: float) -> None:
    """Record that the replacement under way failed; the old generation works on."""
    if child.replacement is not None and child.replacement.under_way:
        _conclude(child, child.replacement, "failed", why)
        _pause(child, policy, now_s)


def _conclude(child: Child, plan: Replacement, outcome: str, why: str) -> None:
    child.replacement = dataclasses.replace(plan, outcome=outcome, why=why)
    child.replacements[f"{plan.reason}/{outcome}"] += 1


def _pause(child: Child, policy: Supervision, now_s: float) -> None:
    """Leave the child alone for a while: longer each time that the pause before did not last."""
    if now_s - child.replace_at_s > child.replace_pause_s:
        child.replace_pause_s = 0.0
    child.replace_pause_s = min(PAUSE_MAX_S, max(policy.replace_pause_s, child.replace_pause_s * 2))
    child.replace_at_s = now_s + child.replace_pause_s
