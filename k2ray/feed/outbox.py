"""What one connection says to the exchange, no faster than the exchange allows. Pure: the time is passed in.

Exchanges drop a client that sends too many messages a second, pings and pongs included. The transport answers the
peer's pings by itself, so one message a second is left to it.
"""

from __future__ import annotations

from collections import deque

from k2ray.exchanges.limits import Budgets, Limit

WINDOW_S = 1.1
"""A little longer than the second that is allowed for: messages may come closer together than they were sent."""


class Outbox:
    """Messages that wait for their turn.

    Args:
        per_s: Messages that the exchange takes in a second.
    """

    def __init__(self, per_s: int) -> None:
        self._budget = Budgets({"messages": Limit(max(1, per_s - 1), WINDOW_S)})
        self._waiting: deque[bytes | None] = deque()
        self.due_s: float | None = None
        """When the next one may go; None: nothing waits."""

    def say(self, text: bytes) -> None:
        """Put a text behind what waits."""
        self._waiting.append(text)

    def ping(self) -> None:
        """Put a ping before what waits: its answer is waited for."""
        self._waiting.appendleft(None)

    def take(self, now_s: float) -> list[bytes | None]:
        """Return what may be sent now, in order; None stands for a ping."""
        taken: list[bytes | None] = []
        self.due_s = None
        while self._waiting:
            wait_s = self._budget.take("messages", 1, now_s)
            if wait_s > 0.0:
                self.due_s = now_s + wait_s
                break
            taken.append(self._waiting.popleft())
        return taken
