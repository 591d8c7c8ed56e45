"""How far a reader is behind its log's end, without asking the broker on the hot path.

Asking with every batch cost a predecessor 1.7 s a batch. Every fetch brings the partition's end anyway, so that is used
first; the broker is asked only for partitions without one, and for each of them at most once an interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from k2ray import metrics
from k2ray.clock import Clock, SystemClock
from k2ray.errors import TryAgain
from k2ray.log.records import PartitionKey

# Lag moves levels of degradation, which look at it every few seconds.
ASK_INTERVAL_S = 5.0
# The answer is a side matter: a slow broker must not hold the reader up.
ASK_TIMEOUT_S = 1.0


class Ends(Protocol):
    """What `LogReader` knows of partitions' ends."""

    def cached_end(self, key: PartitionKey) -> int | None:
        """Return the end as of the last fetch."""

    def watermarks(self, key: PartitionKey, *, timeout_s: float = ...) -> tuple[int, int]:
        """Ask the broker for first offset and end."""


class LagWatch:
    """Counts records between positions and the log's end. Use it from the reader's thread.

    Args:
        reader: The `LogReader`.
        clock: For the interval.
        interval_s: A partition's end is asked for at most this often.
    """

    def __init__(self, reader: Ends, clock: Clock | None = None, interval_s: float = ASK_INTERVAL_S) -> None:
        self._reader = reader
        self._clock = clock or SystemClock()
        self._interval_s = interval_s
        self._asked_s: dict[PartitionKey, float] = {}
        self._ends: dict[PartitionKey, int] = {}

    def behind(self, positions: Mapping[PartitionKey, int]) -> dict[PartitionKey, int]:
        """Return partition -> records that lie between a position (the next offset to read) and the end.

        The end is as of the last fetch or question. A broker that does not answer changes nothing: the last end known
        counts, and partitions whose end was never known are left out.
        """
        now_s = self._clock.monotonic_s()
        for key in positions:
            end = self._reader.cached_end(key)
            if end is not None:
                self._ends[key] = end
            elif key not in self._asked_s or now_s - self._asked_s[key] >= self._interval_s:
                self._asked_s[key] = now_s
                self._ask(key)
        return {key: max(0, self._ends[key] - offset) for key, offset in positions.items() if key in self._ends}

    def _ask(self, key: PartitionKey) -> None:
        metrics.BROKER_QUESTIONS.inc()
        try:
            self._ends[key] = self._reader.watermarks(key, timeout_s=ASK_TIMEOUT_S)[1]
        except TryAgain:
            return
