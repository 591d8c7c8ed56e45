"""Rows a second, from a total that is looked at now and then."""

from __future__ import annotations


class Rate:
    """How fast a total grows, smoothed over some seconds.

    Args:
        smooth_s: A change of pace is taken over to two thirds after this long.
    """

    def __init__(self, smooth_s: float = 3.0) -> None:
        self._smooth_s = smooth_s
        self._last: tuple[float, int] | None = None
        self._rate = 0.0

    def note(self, total: int, now_s: float) -> float:
        """Look at the total and return the rate."""
        if self._last is None or total < self._last[1]:
            self._last = (now_s, total)
            return self._rate
        passed_s = now_s - self._last[0]
        if passed_s > 0:
            pace = (total - self._last[1]) / passed_s
            weight = min(1.0, passed_s / self._smooth_s)
            self._rate += weight * (pace - self._rate)
            self._last = (now_s, total)
        return self._rate
