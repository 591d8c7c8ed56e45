"""How much a process's memory will grow in a day: a straight line through its samples, and how sure that is. Pure.

The interval is the slope's 95 % confidence interval by ordinary least squares. Samples of memory hang together from one
minute to the next, so they count for fewer: n (1 - r) / (1 + r) with r the residuals' lag-1 autocorrelation. A short or
noisy run therefore gets a wide interval, and the verdict says "not proven" instead of something nice.

An allocator takes memory in steps, and one step in an hour looks like a steep line. A leak grows in either half of the
time; growth that only one half shows is neither proven nor excluded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

MB = 1_000_000
DAY_S = 86_400.0
LEAST_SAMPLES = 30
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Growth:
    """A projection in megabytes for each 24 hours.

    Attributes:
        mb_per_day: The slope.
        low, high: Its confidence interval; infinite where there are too few samples.
        samples: How many there were; `effective`: for how many independent ones they count.
        span_s: From the first to the last.
        least_half: The smaller of the slopes of the first and the second half of the time.
    """

    mb_per_day: float
    low: float
    high: float
    samples: int
    effective: float
    span_s: float
    least_half: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there were enough samples to say anything."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def project(points: Sequence[tuple[float, float]]) -> Growth:
    """Return the growth of (seconds, bytes); unknown below `LEAST_SAMPLES`."""
    count = len(points)
    if count < LEAST_SAMPLES:
        span = points[-1][0] - points[0][0] if count > 1 else 0.0
        return Growth(math.nan, -math.inf, math.inf, count, 0.0, span)
    at = np.array([point[0] for point in points], dtype=np.float64)
    size = np.array([point[1] for point in points], dtype=np.float64)
    span = float(at[-1] - at[0])
    offset = at - at.mean()
    spread = float((offset**2).sum())
    slope = _slope(at, size)
    least_half = min(_slope(at[part], size[part]) for part in (at <= at.mean(), at > at.mean())) * DAY_S / MB
    residuals = size - size.mean() - slope * offset
    effective = _effective(residuals)
    freedom = effective - 2
    per_day = slope * DAY_S / MB
    if freedom < 3:
        return Growth(per_day, -math.inf, math.inf, count, effective, span, least_half)
    # The residuals' variance over fewer independent samples, and the spread that so many of them have.
    variance = float((residuals**2).sum()) / count * effective / freedom
    error = math.sqrt(variance / (spread * effective / count)) * DAY_S / MB
    reach = student_quantile(0.5 + CONFIDENCE / 2, freedom) * error
    return Growth(per_day, per_day - reach, per_day + reach, count, effective, span, least_half)


def _slope(at: np.ndarray, size: np.ndarray) -> float:
    if len(at) < 2:
        return 0.0
    offset = at - at.mean()
    return float((offset * (size - size.mean())).sum() / (offset**2).sum())


def _effective(residuals: np.ndarray) -> float:
    count = len(residuals)
    power = float((residuals**2).sum())
    if power == 0:
        return float(count)
    together = float((residuals[1:] * residuals[:-1]).sum()) / power
    together = min(max(together, 0.0), 0.99)
    return count * (1 - together) / (1 + together)


def student_quantile(probability: float, freedom: float) -> float:
    """Return a quantile of Student's t, by the Cornish-Fisher expansion: within 1 % from 3 degrees of freedom on."""
    z = NormalDist().inv_cdf(probability)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
