"""How old rows are when their commit lands: a histogram of bounded size over the last commits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

COMMITS_KEPT = 64
"""Quantiles are of the rows of this many commits: about five minutes at the default interval."""

_EDGES_S = 0.001 * 2 ** (np.arange(0, 120) / 4)
"""From 1 ms to ten days in steps of 19 %."""


class Freshness:
    """Quantiles of (time of the commit - event time), within 19 %."""

    def __init__(self) -> None:
        self._commits: deque[np.ndarray] = deque(maxlen=COMMITS_KEPT)

    def note(self, event_times_us: Sequence[np.ndarray], now_us: int) -> None:
        """Count a landed commit's rows.

        Args:
            event_times_us: Arrays of the rows' event times (or an even sample of them).
            now_us: When the commit landed.
        """
        if not event_times_us:
            return
        ages = (now_us - np.concatenate(event_times_us)) / 1_000_000
        buckets = np.searchsorted(_EDGES_S, ages)
        self._commits.append(np.bincount(buckets, minlength=len(_EDGES_S) + 1))

    def quantile_s(self, quantile: float) -> float | None:
        """Return an upper bound of the age that `quantile` of the rows stay below; None without rows."""
        if not self._commits:
            return None
        counts = np.sum(self._commits, axis=0)
        if not counts.any():
            return None
        bucket = int(np.searchsorted(np.cumsum(counts), quantile * counts.sum()))
        return float(_EDGES_S[min(bucket, len(_EDGES_S) - 1)])
