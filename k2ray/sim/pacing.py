"""How many trades are due: evenly, or in Poisson bursts. Pure; the time that has passed is an argument."""

from __future__ import annotations

from typing import Protocol

import numpy as np

MAX_DEBT_S = 0.5
"""What a stalled machine may catch up at once; the rest is given up and counted, or it would never recover."""

BURST_GAP_S = 1.0
"""Mean time between two bursts."""


class Pacer(Protocol):
    """Says how many trades are due."""

    forgiven: int

    def due(self, elapsed_s: float) -> int:
        """Return how many trades to make now; `elapsed_s` since the start must grow."""

    def pause_s(self, elapsed_s: float) -> float:
        """Return how long to wait before asking again."""


def shortest_pause_s(rate: float) -> float:
    """Return the tick: short while trades come singly, longer where vectors pay."""
    return 0.002 if rate < 20_000 else 0.01


class EvenPacer:
    """One trade every 1/rate seconds."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._done = 0
        self.forgiven = 0

    def due(self, elapsed_s: float) -> int:
        """Return how many trades to make now."""
        due = int(elapsed_s * self._rate) - self._done
        most = max(1, int(self._rate * MAX_DEBT_S))
        if due > most:
            self.forgiven += due - most
            self._done += due - most
            due = most
        self._done += due
        return due

    def pause_s(self, elapsed_s: float) -> float:
        """Return the time to the next trade, at least a tick."""
        return max((self._done + 1) / self._rate - elapsed_s, shortest_pause_s(self._rate))


class BurstPacer:
    """Poisson arrivals: half of the rate at random moments, half in bursts that come about once a second."""

    def __init__(self, rate: float, seed: int) -> None:
        self._rate = rate
        self._rng = np.random.default_rng([seed, 2])
        self._at = 0.0
        self._burst_at = float(self._rng.exponential(BURST_GAP_S))
        self.forgiven = 0

    def due(self, elapsed_s: float) -> int:
        """Return how many trades to make now."""
        passed = min(elapsed_s - self._at, MAX_DEBT_S)
        self.forgiven += int((elapsed_s - self._at - passed) * self._rate)
        self._at = elapsed_s
        due = int(self._rng.poisson(passed * self._rate / 2))
        while self._burst_at <= elapsed_s:
            due += int(self._rng.poisson(self._rate * BURST_GAP_S / 2))
            self._burst_at += float(self._rng.exponential(BURST_GAP_S))
        return due

    def pause_s(self, elapsed_s: float) -> float:
        """Return the tick."""
        del elapsed_s
        return max(shortest_pause_s(self._rate), min(0.1 / self._rate, 0.25))
