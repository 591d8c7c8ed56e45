"""The verdict on a run: what was asked, what was found, and whether that proves it. Pure.

Three outcomes, not two: what was not looked at for long enough is "not proven", never "passed". A run is passed only if
every check is, failed as soon as one is, and says how long it really ran.

Next in the flow: `report.py`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from k2ray.soak.evidence import Evidence
from k2ray.soak.growth import LEAST_SAMPLES, MB, Growth, project
from k2ray.soak.samples import ActorSample, Sample

PASSED, FAILED, NOT_PROVEN = "passed", "failed", "not proven"
EXIT_STATUS = {PASSED: 0, FAILED: 1, NOT_PROVEN: 2}

MOST_GROWTH_MB = 50.0
LEAST_RATE = 10.0
LEAST_SECONDS = 0.999
LEAST_SAMPLED = 0.95
"""Part of the samples that a period should have."""

PING_S = 0.03
"""What may pass between two pings beside their interval; matters only where that is short."""

ROTATION_S = 3.0
"""How late a rotation may begin: a connection's age counts from its opening, and the one before must have ended."""


@dataclass(frozen=True)
class Plan:
    """What should happen.

    Attributes:
        feeds: Connections that rotate and ping.
        rotate_every_s, jitter, ping_interval_s: As they really are (compression applied).
        pong_timeout_s: Of the settings.
        sample_interval_s: Between samples.
        warmup_s: A process's first seconds, which say nothing about its growth.
        hard_bytes: Role -> most resident memory.
    """

    feeds: int
    rotate_every_s: float
    jitter: float
    ping_interval_s: float
    pong_timeout_s: float
    sample_interval_s: float = 60.0
    warmup_s: float = 600.0
    hard_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """Rows of one table against what a simulated exchange generated, by ids (`k2ray/sim/audit.py`)."""

    table: str
    sent: int
    stored: int
    lost: int
    duplicated: int
    invented: int


@dataclass(frozen=True)
class Run:
    """Everything that is known about a run.

    Attributes:
        since_s, until_s: Unix times of what is judged.
        asked_s: How long it should have been.
        samples: Oldest first.
        evidence: A table each.
        compared: The same against the exchange's truth, where there is one.
        aborted: Why it ended early; empty if it did not.
        sent: Unix seconds in which the exchange made something, where it says so; None: it makes something always.
    """

    since_s: float
    until_s: float
    asked_s: float
    plan: Plan
    samples: Sequence[Sample]
    evidence: Sequence[Evidence] = ()
    compared: Sequence[Compared] = ()
    aborted: str = ""
    sent: frozenset[int] | None = None

    @property
    def ran_s(self) -> float:
        """How long it really ran."""
        return self.until_s - self.since_s


@dataclass(frozen=True)
class Check:
    """One question: what was wanted, what was found, and the outcome."""

    name: str
    wanted: str
    found: str
    outcome: str


@dataclass(frozen=True)
class Verdict:
    """All checks, and what follows from them."""

    checks: list[Check]
    growth: dict[str, Growth]

    @property
    def outcome(self) -> str:
        """`passed`, `failed` or `not proven`."""
        outcomes = {check.outcome for check in self.checks}
        return FAILED if FAILED in outcomes else NOT_PROVEN if NOT_PROVEN in outcomes or not outcomes else PASSED


def judge(run: Run) -> Verdict:
    """Judge a run."""
    growth = {name: project(points) for name, points in memory_of(run).items()}
    checks = [
        _duration(run),
        _sampled(run),
        _growth(growth),
        _memory(run),
        _rate(run),
        _seconds(run),
        _lost(run),
        _duplicated(run),
        _rotations(run),
        _pings(run),
    ]
    return Verdict(checks, growth)


def memory_of(run: Run) -> dict[str, list[tuple[float, float]]]:
    """Return actor -> (unix time, RSS) of the process of it that was seen longest, its warm-up left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, processes in _processes(run.samples).items():
        series = [
            [(at, float(actor.rss_bytes)) for at, actor in process if actor.rss_bytes is not None]
            for process in processes
        ]
        # A process that was there at the first sample may be old; counting from there is the careful reading.
        grown = [[point for point in one if one and point[0] - one[0][0] >= run.plan.warmup_s] for one in series]
        found[name] = max(grown, key=len, default=[])
    return found


def _processes(samples: Iterable[Sample]) -> dict[str, list[list[tuple[float, ActorSample]]]]:
    """Return actor -> its processes' samples, oldest process first."""
    found: dict[str, dict[tuple[int, int | None], list[tuple[float, ActorSample]]]] = defaultdict(dict)
    for sample in samples:
        for actor in sample.actors:
            if actor.pid is not None:
                found[actor.name].setdefault((actor.generation, actor.pid), []).append((sample.at_s, actor))
    return {name: list(processes.values()) for name, processes in found.items()}


def rotations_of(samples: Sequence[Sample]) -> dict[str, int]:
    """Return reason -> rotations completed while the samples were taken, over all feeds."""
    return _counted(samples, lambda actor: actor.rotations)


def reconnects_of(samples: Sequence[Sample]) -> int:
    """Return how many connections ended before another one delivered while the samples were taken, over all feeds."""
    return _counted(samples, lambda actor: {"": actor.reconnects}).get("", 0)


def lives_of(samples: Sequence[Sample]) -> dict[str, tuple[int, int]]:
    """Return actor -> (processes that it had, restarts that nobody planned) while the samples were taken."""
    restarts: dict[str, list[int]] = defaultdict(list)
    for sample in samples:
        for actor in sample.actors:
            restarts[actor.name].append(actor.restarts)
    processes = _processes(samples)
    return {name: (len(processes.get(name, ())), of[-1] - of[0]) for name, of in restarts.items()}


def _ended_for_memory(samples: Sequence[Sample]) -> list[str]:
    """Return the actors that the supervisor ended for memory: it looks each second, so no sample need have seen it."""
    counts: dict[str, list[int]] = defaultdict(list)
    for sample in samples:
        for actor in sample.actors:
            counts[actor.name].append(actor.restarts_by.get("memory", 0))
    return sorted(name for name, of in counts.items() if of[-1] > of[0])


def _feeds_begun(samples: Sequence[Sample]) -> int:
    """Return how many processes of feeds came after the first one: deployed, replaced for memory, or restarted."""
    return sum(len(of) - 1 for of in _processes(samples).values() if of[0][0][1].role == "feed")


def _feed_spans_s(samples: Sequence[Sample]) -> list[float]:
    """Return for how long each feed that carries data was seen: a deployment may bring some, or take some away."""
    seen: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        for actor in sample.actors:
            if actor.role == "feed" and actor.data_age_s is not None:
                seen[actor.name].append(sample.at_s)
    return [of[-1] - of[0] for of in seen.values()]


def _counted(samples: Sequence[Sample], counts: Callable[[ActorSample], Mapping[str, int]]) -> dict[str, int]:
    """Return how much counters grew, over all processes: one that began meanwhile began at 0."""
    total: dict[str, int] = defaultdict(int)
    first_s = samples[0].at_s if samples else 0.0
    for processes in _processes(samples).values():
        for process in processes:
            begun = counts(process[0][1]) if process[0][0] == first_s else {}
            for reason, count in counts(process[-1][1]).items():
                total[reason] += count - begun.get(reason, 0)
    return {reason: count for reason, count in total.items() if count}


def _duration(run: Run) -> Check:
    found = f"ran {span(run.ran_s)}{f'; ended early: {run.aborted}' if run.aborted else ''}"
    whole = run.ran_s >= run.asked_s * 0.999 and not run.aborted
    return Check("duration", span(run.asked_s), found, PASSED if whole else NOT_PROVEN)


def _sampled(run: Run) -> Check:
    wanted = max(1, int(run.asked_s / run.plan.sample_interval_s))
    found = len(run.samples)
    enough = found >= LEAST_SAMPLES and found >= wanted * LEAST_SAMPLED
    return Check("samples", f"{wanted}, {LEAST_SAMPLES} at least", str(found), PASSED if enough else NOT_PROVEN)


def _growth(growth: Mapping[str, Growth]) -> Check:
    wanted = f"below {MOST_GROWTH_MB:g} MB in 24 h, each actor"
    if not growth:
        return Check("memory growth", wanted, "no samples", NOT_PROVEN)
    leaking = {name: one for name, one in growth.items() if min(one.low, one.least_half) > MOST_GROWTH_MB}
    unknown = [name for name, one in growth.items() if not one.known or one.high >= MOST_GROWTH_MB]
    name, worst = max((leaking or growth).items(), key=lambda item: (item[1].low, item[1].high))
    found = f"{name}: {growth_text(worst)}"
    if leaking:
        return Check("memory growth", wanted, found, FAILED)
    if unknown:
        found += f"; too short, noisy or stepwise for {', '.join(unknown)}"
        return Check("memory growth", wanted, found, NOT_PROVEN)
    return Check("memory growth", wanted, found, PASSED)


def growth_text(growth: Growth) -> str:
    """Return a projection for people, with its interval."""
    if not growth.known:
        return f"unknown from {growth.samples} samples"
    return f"{growth.mb_per_day:.1f} MB in 24 h ({growth.low:.1f} to {growth.high:.1f})"


def _memory(run: Run) -> Check:
    most: dict[str, int] = {}
    for sample in run.samples:
        for actor in sample.actors:
            most[actor.role] = max(most.get(actor.role, 0), actor.rss_bytes or 0)
    limits = run.plan.hard_bytes
    over = [role for role, size in most.items() if role in limits and size > limits[role]]
    found = ", ".join(f"{role} {size / MB:.0f} MB" for role, size in sorted(most.items()) if size) or "no samples"
    if ended := _ended_for_memory(run.samples):
        found += f"; ended for it: {', '.join(ended)}"
    outcome = FAILED if over or ended else PASSED if any(most.values()) else NOT_PROVEN
    return Check("memory limit", "no process above its role's hard limit", found, outcome)


def _rate(run: Run) -> Check:
    rows = sum(one.rows for one in run.evidence)
    rate = rows / run.ran_s if run.ran_s > 0 else 0.0
    outcome = NOT_PROVEN if not run.evidence else PASSED if rate > LEAST_RATE else FAILED
    return Check("rate", f"above {LEAST_RATE:g} messages/s", f"{rate:,.1f}/s, {rows:,} rows", outcome)


def _seconds(run: Run) -> Check:
    asked = set(range(math.ceil(run.since_s), math.floor(run.until_s)))
    wanted = f"above {LEAST_SECONDS:.1%} of seconds"
    silent = "" if run.sent is None else f"; {len(asked - run.sent)} in which the exchange was silent"
    asked = asked if run.sent is None else asked & run.sent
    if not asked or not run.evidence:
        return Check("seconds with data", wanted, "nothing to look at", NOT_PROVEN)
    without = len(asked.difference(*(one.seconds for one in run.evidence)))
    part = 1 - without / len(asked)
    outcome = PASSED if part > LEAST_SECONDS else FAILED
    return Check("seconds with data", wanted, f"{part:.3%}, {without} of {len(asked)} without{silent}", outcome)


def _lost(run: Run) -> Check:
    wanted = "0, by ids"
    provable = [one for one in run.evidence if one.missing is not None and one.rows]
    missing = sum(one.missing or 0 for one in provable)
    if run.compared:
        lost = sum(one.lost + one.invented for one in run.compared)
        sent = sum(one.sent for one in run.compared)
        outcome = FAILED if lost or missing else PASSED if sent else NOT_PROVEN
        return Check("lost", wanted, f"{lost:,} of {sent:,} that the exchange sent; {missing:,} missing ids", outcome)
    outcome = NOT_PROVEN if not provable else FAILED if missing else PASSED
    return Check("lost", wanted, f"{missing:,} missing between stored ids" if provable else "no ids", outcome)


def _duplicated(run: Run) -> Check:
    stored = sum(one.rows for one in run.evidence) + sum(one.stored for one in run.compared)
    twice = sum(one.duplicated for one in run.evidence) + sum(one.duplicated for one in run.compared)
    outcome = FAILED if twice else PASSED if stored else NOT_PROVEN
    return Check("duplicated", "0, by ids", f"{twice:,}", outcome)


def _rotations(run: Run) -> Check:
    plan = run.plan
    found = rotations_of(run.samples)
    scheduled = found.get("schedule", 0)
    reconnects = reconnects_of(run.samples)
    begun = _feeds_begun(run.samples)
    others = sum(found.values()) - scheduled + reconnects + begun
    spans_s = _feed_spans_s(run.samples)
    # A connection that is new for another reason begins its age anew.
    least = max(0, sum(int(one / (plan.rotate_every_s + ROTATION_S)) for one in spans_s) - others)
    most = sum(int(one / (plan.rotate_every_s * (1 - plan.jitter))) + 1 for one in spans_s)
    wanted = f"{least} to {most} by schedule"
    text = ", ".join(f"{count} {reason}" for reason, count in sorted(found.items())) or "none"
    text += f", {counted(reconnects, 'reconnect')}" if reconnects else ""
    text += f", {counted(begun, 'feed process', 'es')} begun anew" if begun else ""
    if not spans_s or (not scheduled and not least):
        return Check("rotations", wanted, f"{text}; none was due in this time", NOT_PROVEN)
    return Check("rotations", wanted, text, PASSED if least <= scheduled <= most else FAILED)


def _pings(run: Run) -> Check:
    plan = run.plan
    counted = [(sample.at_s, sample.pings) for sample in run.samples if sample.pings is not None]
    if len(counted) > 1:
        planned = plan.feeds * (counted[-1][0] - counted[0][0]) / plan.ping_interval_s
        pings = (counted[-1][1] or 0) - (counted[0][1] or 0)
        # Two connections ping during a rotation, and a rotation begins the interval anew; probes are pings too.
        on_time = plan.ping_interval_s / (plan.ping_interval_s + PING_S)
        least, most = math.floor(planned * on_time * 0.95) - plan.feeds, math.ceil(planned * 1.3) + 10
        wanted = f"{planned:.0f}, {max(0, least)} to {most}"
        outcome = NOT_PROVEN if planned < 1 else PASSED if least <= pings <= most else FAILED
        return Check("pings", wanted, f"{pings} came to the exchange", outcome)
    limit_s = plan.ping_interval_s + plan.pong_timeout_s + 5
    ages = [actor.pong_age_s for sample in run.samples for actor in sample.actors if actor.pong_age_s is not None]
    wanted = f"the last pong never older than {limit_s:.0f} s"
    if not ages or run.ran_s < 2 * plan.ping_interval_s:
        return Check("pings", wanted, "no pong was due in this time", NOT_PROVEN)
    return Check("pings", wanted, f"{max(ages):.0f} s at most", PASSED if max(ages) <= limit_s else FAILED)


def counted(number: int, noun: str, plural: str = "s") -> str:
    """Return a number of things for people: `1 reconnect`, `2 reconnects`."""
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def span(seconds: float) -> str:
    """Return a time for people: `7 d`, `1 h 30 min`, `45 s`."""
    rest = round(seconds)
    parts = []
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"
