"""The supervisor's decisions, without Ray: wanted and living actors, their health and history -> instructions.

Tell it what happened (`handle`), ask it what to do (`decide`). Time is an argument and so is chance. Rules:

1. A wanted child without a life is started, as the generation after the highest ever seen.
2. A living actor that nobody knows is attached to (a restarted supervisor adopts this way, without disturbing it), and
   drained afterwards if it is not wanted.
3. A life that is silent for the health timeout, whose loop does not turn, or that is not up in time is killed; the one
   after a late one has twice the time.
4. A planned replacement starts the next generation beside the living one. Of two generations the newest that has proved
   itself on live data stays (`actors/replacement.py`); one that cannot is given up, and that is no crash.
5. A life that ended is followed by the next one after exponential backoff with full jitter. Too many crashes within the
   window, or an error that only a person may resolve: the child is failed, and the others go on.
   Over its hard memory limit it has crashed; over the soft one, or leaking, it is replaced (`actors/pressure.py`).
6. A new epoch of wanted state (`k2ray up` once more) forgives: failed children are started again.
7. Stopping: stage by stage (`names.ROLES`), each drained within its deadline or killed; nothing is started.

Silence is only held against a child while the supervisor itself was awake.

Not its job: making, asking and killing actors (`actors/supervisor.py`), Ray (`actors/edge.py`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

from actors import pressure, recollection, replacement
from actors.lives import (
    Answered,
    Ask,
    Attach,
    Cause,
    Child,
    Drain,
    Ended,
    Event,
    Fault,
    Instruction,
    Kill,
    Life,
    Listed,
    Phase,
    Start,
)
from actors.names import ActorName, drain_stage
from actors.verdicts import Verdict, judge
from k2ray.errors import BadInput
from k2ray.settings import Memory, Supervision


class Reconciler:
    """Decides what to do with the actors; pure.

    Args:
        policy: When to act.
        chance: Where jitter comes from.
        memory: What each role may take.
    """

    def __init__(self, policy: Supervision, chance: random.Random, memory: Memory | None = None) -> None:
        self._policy = policy
        self._memory = memory or Memory()
        self._chance = chance
        self._children: dict[str, Child] = {}
        self._epoch: int | None = None
        self._gone: set[ActorName] = set()
        self._listed = False
        self._awake_s: float | None = None
        self._ended: list[Kill] = []
        self._replacing: list[Child] = []
        self._abandoned: list[Drain] = []
        self._known = recollection.Known()
        self.stopping = False

    # --- what happened

    def want(
        self,
        names: Iterable[str],
        epoch: int,
        *,
        base: str = "",
        runs: Mapping[str, str] | None = None,
        held: Iterable[str] = (),
    ) -> None:
        """Set the logical names that should live.

        Args:
            names: All of them.
            epoch: A new one forgives what failed.
            base: Release of a child that never ran one.
            runs: Logical name -> another release for a child without a life.
            held: Whose older generations stay although a newer one works.
        """
        wanted, runs, held = list(names), runs or {}, set(held)
        forgive = self._epoch is not None and epoch != self._epoch
        self._epoch = epoch
        for logical in wanted:
            child = self._children.setdefault(logical, Child(logical))
            child.wanted = True
            if not child.release or not child.lives:
                child.release = runs.get(logical, child.release or base)
            if forgive:
                child.failed = False
                child.crashes.clear()
                child.start_at_s = 0.0
        for logical, child in self._children.items():
            child.wanted = logical in wanted
            child.held = logical in held

    def follow(self, policy: Supervision, memory: Memory) -> None:
        """Go on by another policy: the settings have changed."""
        self._policy = policy
        self._memory = memory

    def replace(self, logical: str, reason: str, now_s: float, *, release: str | None = None, detail: str = "") -> int:
        """Start the next generation beside the living one, which is drained once the new one has proved itself.

        Args:
            logical: Whom.
            reason: `memory`, `leak`, `deploy`, `operator`: a metric's label, so one of few.
            now_s: Now.
            release: What the new generation runs; None: what the old one does. A child that is not alive (failed,
                waiting for its backoff) is forgiven and started with it.
            detail: For people.

        Returns:
            The new generation's number. How it ends is in `Child.replacement`.

        Raises:
            BadInput: Nobody of that name, or it cannot be replaced now; the message says why.
        """
        child = self._children.get(logical)
        if child is None or not child.wanted:
            raise BadInput(f"no actor {logical!r} is wanted")
        why_not = "the system stops" if self.stopping else replacement.refusal(child)
        if why_not:
            raise BadInput(f"{logical} cannot be replaced now: {why_not}")
        if replacement.begin(child, reason, detail, release):
            self._replacing.append(child)
        return child.generation + 1

    def abandon(self, logical: str, now_s: float) -> bool:
        """Give up the replacement under way: the new generation drains. False if there is none to give up."""
        child = self._children.get(logical)
        plan = child.replacement if child is not None else None
        if child is None or plan is None or not plan.under_way:
            return False
        life = child.lives.get(plan.generation)
        if child in self._replacing:
            self._replacing.remove(child)
        elif life is not None and not replacement.is_proving(child, life):
            return False  # the old one is gone: this one does the work
        elif life is not None and life.phase is not Phase.DRAINING:
            self._abandoned.append(self._drain(life, "given up", now_s))
        replacement.give_up(child, "given up by the deployment", self._policy, now_s)
        return True

    def stop(self, stopping: bool = True) -> None:
        """Drain everything, stage by stage, and start nothing; False takes that back (`up` after half a `down`)."""
        self.stopping = stopping

    def handle(self, event: Event, now_s: float) -> None:
        """Take note of an event; what follows from it is in the next `decide`."""
        match event:
            case Listed(names):
                self._note_listed(names, now_s)
            case Answered(name, health):
                self._note_answer(name, health, now_s)
            case Ended(name, reason, fault):
                self._end(name, reason, fault, now_s)

    # --- what to do

    def decide(self, now_s: float) -> list[Instruction]:
        """Return what to do now, each instruction once."""
        self._forgive_own_sleep(now_s)
        todo: list[Instruction] = [*self._ended, *self._abandoned]
        self._ended, self._abandoned = [], []
        for child in list(self._children.values()):
            for life in list(child.lives.values()):
                if life.adopted and not life.attached:
                    life.attached = True
                    todo.append(Attach(life.name))
                verdict = judge(child, life, self._policy, self._memory, now_s)
                if verdict is not None:
                    todo.append(self._kill(child, life, verdict, now_s))
                elif life.asked_s is None or (
                    life.heard_s >= life.asked_s and now_s - life.asked_s >= self._policy.health_interval_s
                ):
                    life.asked_s = now_s
                    todo.append(Ask(life.name))
        if self.stopping:
            todo += self._stop_next_stage(now_s)
            return todo
        self._relieve_memory(now_s)
        todo += self._start_replacements(now_s)
        for child in self._children.values():
            todo += self._keep_one(child, now_s)
            if self._listed:
                replacement.settle(child, self._policy, now_s)
            if self._may_start(child, now_s):
                todo.append(self._start(child, child.release, now_s))
        return todo

    def rest_s(self, now_s: float) -> float:
        """Return for how long nothing needs a decision, as far as it is known: until the next look or start."""
        due = [child.start_at_s - now_s for child in self._children.values() if child.start_at_s > now_s]
        return min([self._policy.interval_s, *due])

    @property
    def children(self) -> Mapping[str, Child]:
        """Every child known, by logical name; to read, not to change."""
        return self._children

    @property
    def settled(self) -> bool:
        """Whether stopping is complete: no life is left."""
        return self.stopping and self._listed and not any(child.lives for child in self._children.values())

    def remember(self) -> dict[str, Any]:
        """Return what the next supervisor should know, as plain values."""
        return {"epoch": self._epoch, "children": recollection.remember(self._children.values())}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take over what an earlier supervisor remembered, before the first `want`."""
        self._epoch = memory.get("epoch")
        children, self._known = recollection.recall(memory.get("children", {}))
        self._children |= {child.logical: child for child in children}

    # --- the rules

    def _note_listed(self, names: frozenset[ActorName], now_s: float) -> None:
        self._gone &= names
        for name in sorted(names - self._gone):
            child = self._children.setdefault(name.logical, Child(name.logical, wanted=False))
            child.generation = max(child.generation, name.generation)
            if name.generation not in child.lives:
                life = Life(name, Phase.STARTING, since_s=now_s, heard_s=now_s, started_s=now_s, adopted=True)
                life.release = self._known.releases.get(name, child.release)
                life.pid = self._known.pids.get(name)
                child.lives[name.generation] = life
        if not self._listed:
            self._replacing += [child for child in self._children.values() if replacement.resume(child)]
        self._listed = True

    def _note_answer(self, name: ActorName, health: Mapping[str, Any], now_s: float) -> None:
        life = self._life(name)
        if life is None:
            return
        life.heard_s = now_s
        life.health = health
        life.pid = health.get("pid")
        life.node = health.get("node")
        if not health.get("ready", True):
            life.ready_s = None
        elif life.ready_s is None:
            life.ready_s = now_s
        if life.phase is Phase.STARTING:
            life.phase = Phase.RUNNING
            life.since_s = now_s
            self._children[name.logical].late_starts = 0

    def _keep_one(self, child: Child, now_s: float) -> list[Instruction]:
        """Drain what is not wanted, and the generations that a newer one has taken over from."""
        if child.wanted:
            lives, reason = replacement.superseded(child, now_s), "a newer generation works"
        else:
            lives = [life for life in child.lives.values() if life.phase is not Phase.DRAINING]
            reason = "not wanted any more"
        return [self._drain(life, reason, now_s) for life in lives]

    def _start(self, child: Child, release: str, now_s: float) -> Start:
        child.generation += 1
        name = ActorName(child.logical, child.generation)
        life = Life(name, Phase.STARTING, since_s=now_s, heard_s=now_s, started_s=now_s, release=release)
        child.lives[child.generation] = life
        return Start(name, release)

    def _start_replacements(self, now_s: float) -> list[Instruction]:
        replacing, self._replacing = self._replacing, []
        return [
            self._start(child, child.replacement.release, now_s)
            for child in replacing
            if child.wanted and child.replacement is not None
        ]

    def _relieve_memory(self, now_s: float) -> None:
        """Begin to replace one actor that takes too much or leaks; one at a time, two generations take twice that.

        Held children do not count: a deployment that died leaves them so until somebody acts, which may be days.
        """
        children = self._children.values()
        if any(child.replacement is not None and child.replacement.under_way and not child.held for child in children):
            return
        for child in children:
            life = child.current
            if life is None or now_s < child.replace_at_s or replacement.refusal(child):
                continue
            why = pressure.worth_replacing(life.name.role, life.health, self._memory)
            if why is not None:
                self.replace(child.logical, why[0], now_s, detail=why[1])
                return

    def _stop_next_stage(self, now_s: float) -> list[Instruction]:
        """Drain the first stage that still has lives; the later ones wait for it."""
        lives = [life for child in self._children.values() for life in child.lives.values()]
        if not lives:
            return []
        stage = min(drain_stage(life.name.role) for life in lives)
        return [
            self._drain(life, "the system stops", now_s)
            for life in lives
            if drain_stage(life.name.role) == stage and life.phase is not Phase.DRAINING
        ]

    def _drain(self, life: Life, reason: str, now_s: float) -> Drain:
        life.phase = Phase.DRAINING
        life.since_s = now_s
        return Drain(life.name, reason)

    def _may_start(self, child: Child, now_s: float) -> bool:
        # Before the first listing a living generation may be unknown: starting would double it.
        alone = all(life.phase is Phase.DRAINING for life in child.lives.values())
        return self._listed and child.wanted and not child.failed and alone and now_s >= child.start_at_s

    def _kill(self, child: Child, life: Life, verdict: Verdict, now_s: float) -> Kill:
        if verdict.cause is Cause.START and not replacement.is_proving(child, life):
            child.late_starts += 1
        self._note_end(child, life, verdict.reason, verdict.cause, Fault.CRASH, now_s)
        return Kill(life.name, life.pid, life.node, verdict.reason)

    def _end(self, name: ActorName, reason: str, fault: Fault, now_s: float) -> None:
        child = self._children.get(name.logical)
        life = self._life(name)
        if child is None or life is None:
            return
        drained = life.phase is Phase.DRAINING and fault is not Fault.OPERATOR
        # The end of run() is not the end of its process.
        self._ended.append(Kill(name, life.pid, life.node, "drained" if drained else reason))
        self._note_end(child, life, reason, Cause(fault.value), fault, now_s)

    def _note_end(self, child: Child, life: Life, reason: str, cause: Cause, fault: Fault, now_s: float) -> None:
        """Forget a life; what it means depends on what the others of its child do."""
        proving = replacement.is_proving(child, life)
        del child.lives[life.name.generation]
        self._gone.add(life.name)
        if life.phase is Phase.DRAINING and (fault is not Fault.OPERATOR or child.lives):
            if cause is Cause.DRAIN:
                child.last_reason = reason
            return
        if proving:
            replacement.give_up(child, reason, self._policy, now_s)
        else:
            self._count(child, reason, cause, fault, now_s)

    def _count(self, child: Child, reason: str, cause: Cause, fault: Fault, now_s: float) -> None:
        policy = self._policy
        child.last_reason = reason
        child.restarts_by[cause] += 1
        if fault is Fault.OPERATOR:
            child.failed = True
            return
        while child.crashes and now_s - child.crashes[0] > policy.crash_loop_s:
            child.crashes.popleft()
        if fault is Fault.CRASH:
            child.crashes.append(now_s)
        if len(child.crashes) >= policy.crash_loop_restarts:
            child.failed = True
            child.last_reason = f"{len(child.crashes)} crashes within {policy.crash_loop_s:g} s, the last: {reason}"
            return
        doublings = min(max(len(child.crashes) - 1, 0), 30)
        bound_s = min(policy.backoff_max_s, policy.backoff_initial_s * 2**doublings)
        child.start_at_s = now_s + self._chance.uniform(0.0, bound_s)

    def _forgive_own_sleep(self, now_s: float) -> None:
        """Shift all deadlines by the time that the supervisor itself was not running (stopped, suspended, starved)."""
        slept_s = now_s - self._awake_s if self._awake_s is not None else 0.0
        self._awake_s = now_s
        if slept_s > self._policy.health_timeout_s / 2:
            for child in self._children.values():
                for life in child.lives.values():
                    life.heard_s += slept_s
                    life.since_s += slept_s
                    life.started_s += slept_s

    def _life(self, name: ActorName) -> Life | None:
        child = self._children.get(name.logical)
        return child.lives.get(name.generation) if child else None
