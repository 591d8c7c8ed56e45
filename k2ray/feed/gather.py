"""Frames of one connection, gathered until a batch is worth its record: the adaptive linger.

A Kafka record costs the same whatever it holds, so frames wait for company: until there are `FLUSH_FRAMES` of them, or
`linger_s` when there are at least `LOADED_FRAMES`, or `linger_idle_s` below that. Pure: the time is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from k2ray.exchanges.base import Times

FLUSH_FRAMES = 4_000
"""One decode of this many frames is at its best rate, and a record of them is far below 1 MB."""

LOADED_FRAMES = 200
"""From here on waiting longer saves little."""


@dataclass(frozen=True)
class Gathered:
    """Frames that are decoded and published together.

    Attributes:
        frames: Payloads in the order received.
        received_us: When each was received.
    """

    frames: Sequence[bytes]
    received_us: Times


@dataclass
class Gather:
    """Holds frames until they are due.

    Args:
        linger_s: The longest wait with `LOADED_FRAMES` or more.
        linger_idle_s: The longest wait with fewer.
    """

    linger_s: float
    linger_idle_s: float
    _frames: list[bytes] = field(default_factory=list)
    _reads: list[tuple[int, int]] = field(default_factory=list)
    _since_s: float = 0.0

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frames: Sequence[bytes], received_us: int, now_s: float) -> None:
        """Add the frames of one read of the socket."""
        if not frames:
            return
        if not self._frames:
            self._since_s = now_s
        self._frames.extend(frames)
        self._reads.append((received_us, len(frames)))

    @property
    def due_s(self) -> float | None:
        """When the held frames are due, on the clock of `add`; None without frames."""
        if not self._frames:
            return None
        if len(self._frames) >= FLUSH_FRAMES:
            return self._since_s
        return self._since_s + (self.linger_s if len(self._frames) >= LOADED_FRAMES else self.linger_idle_s)

    def take(self) -> Gathered | None:
        """Return all held frames and forget them; None if there are none."""
        if not self._frames:
            return None
        times = np.array([received for received, _ in self._reads], dtype=np.int64)
        gathered = Gathered(self._frames, times.repeat([count for _, count in self._reads]))
        self._frames, self._reads = [], []
        return gathered
