"""How a process's memory develops: samples, their slope, and how much that looks like a leak. Pure.

The **leak score** is min(MB per hour / 50, 1) x R2: near 1 only if memory grows fast and steadily. What grows while a
process warms up, or jumps to and fro with the load, has a low R2 or a small slope over a window of an hour.

Not its job: taking samples (`actors/sampling.py`), acting on them (`actors/pressure.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

MB = 1_000_000
LEAK_MB_PER_HOUR = 50.0
"""A slope from which on the score is R2 alone: 1.2 GB a day."""


@dataclass(frozen=True)
class Sample:
    """A process's memory at one moment.

    Attributes:
        at_s: Monotonic time.
        rss_bytes: Resident, shared pages included (about 60 MB of every Ray worker).
        vms_bytes: Virtual.
        store_bytes: Of the resident ones those that are shared memory: objects of Ray's object store in use.
    """

    at_s: float
    rss_bytes: int
    vms_bytes: int = 0
    store_bytes: int = 0


@dataclass(frozen=True)
class Trend:
    """A straight line through samples.

    Attributes:
        bytes_per_hour: Its slope.
        r2: How much of the samples' variance it explains, 0 to 1.
        samples: How many there were.
        span_s: From the first to the last.
    """

    bytes_per_hour: float = 0.0
    r2: float = 0.0
    samples: int = 0
    span_s: float = 0.0

    @property
    def leak_score(self) -> float:
        """0: not growing, or not steadily; 1: steadily, by 50 MB an hour or more."""
        return min(max(self.bytes_per_hour, 0.0) / MB / LEAK_MB_PER_HOUR, 1.0) * self.r2


def fit(points: Sequence[tuple[float, float]]) -> Trend:
    """Return the least-squares line through (seconds, bytes); flat where two different times are lacking."""
    count = len(points)
    if count < 2:
        return Trend(samples=count)
    mean_t = sum(at for at, _ in points) / count
    mean_y = sum(value for _, value in points) / count
    spread_t = sum((at - mean_t) ** 2 for at, _ in points)
    spread_y = sum((value - mean_y) ** 2 for _, value in points)
    together = sum((at - mean_t) * (value - mean_y) for at, value in points)
    span_s = points[-1][0] - points[0][0]
    if spread_t == 0.0 or spread_y == 0.0:
        return Trend(samples=count, span_s=span_s)
    r2 = min(together * together / (spread_t * spread_y), 1.0)
    return Trend(together / spread_t * 3600.0, r2, count, span_s)


class MemoryTrend:
    """The newest samples of one process.

    Args:
        window: How many are kept.
        warmup_s: Samples of this first time say nothing about a leak: caches fill, libraries load.
    """

    def __init__(self, window: int, warmup_s: float = 0.0) -> None:
        self._samples: deque[Sample] = deque(maxlen=window)
        self._warmup_s = warmup_s
        self._first_s: float | None = None
        self._trend = Trend()

    @property
    def newest(self) -> Sample | None:
        """The last sample; None before the first."""
        return self._samples[-1] if self._samples else None

    @property
    def trend(self) -> Trend:
        """The resident memory's trend after the warm-up."""
        return self._trend

    @property
    def complete(self) -> bool:
        """Whether the trend covers a whole window: less is not enough to call it a leak."""
        return self._trend.samples == self._samples.maxlen

    def add(self, sample: Sample) -> None:
        """Take a sample; times must not decrease."""
        if self._first_s is None:
            self._first_s = sample.at_s
        self._samples.append(sample)
        warm_s = self._first_s + self._warmup_s
        self._trend = fit([(kept.at_s, float(kept.rss_bytes)) for kept in self._samples if kept.at_s >= warm_s])
