"""A clock that runs fast, for shells whose timeouts may not be short: a pong is waited for 5 s at least."""

from __future__ import annotations

import time


class FastClock:
    """The machine's clocks, but the monotonic one runs `factor` times as fast.

    Only for shells whose sleeps are short by themselves (a feed's session looks at least every 50 ms).
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._began_s = time.monotonic()

    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def monotonic_s(self) -> float:
        return self._began_s + (time.monotonic() - self._began_s) * self._factor
