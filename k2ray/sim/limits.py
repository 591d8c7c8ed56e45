"""What the exchange allows its clients: numbers, and pure counters that say when one was passed.

The rules are Binance Spot's (https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams). Request
weights are in `weights.py`; `connection.py` and `server.py` do what follows from a passed limit.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

CONNECTS_WINDOW_S = 300.0
MESSAGES_WINDOW_S = 1.0


@dataclass(frozen=True)
class Limits:
    """How the server treats its clients.

    Attributes:
        ping_interval_s: Between two pings; Binance's 20 s.
        pong_timeout_s: A client whose pong is this late is dropped; Binance's 60 s.
        client_buffer_bytes: More than this waiting for a slow client disconnects it.
        lifetime_s: A WebSocket older than this is closed; Binance's 24 hours.
        shutdown_notice_s: So long before that it is told `serverShutdown`; 0: it is closed without notice.
        messages_per_s: A client that sends more in a second (requests, pings, unasked-for pongs) is disconnected.
        connects_per_5_min: More WebSockets from one address within five minutes are refused with 429.
        streams: A connection may subscribe to this many.
        weight_per_min: Request weight that an address may use in a minute before REST answers 429.
        ban_s: How long an address is banned (418) that goes on after a 429; doubles with every further ban.
    """

    ping_interval_s: float = 20.0
    pong_timeout_s: float = 60.0
    client_buffer_bytes: int = 67_108_864
    lifetime_s: float = 86_400.0
    shutdown_notice_s: float = 0.0
    messages_per_s: int = 5
    connects_per_5_min: int = 300
    streams: int = 1024
    weight_per_min: int = 6000
    ban_s: float = 120.0


class SlidingWindow:
    """Counts what happened within the last `window_s`.

    Args:
        limit: What is allowed within it.
        window_s: Its length.
    """

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._at: deque[float] = deque()

    def take(self, now_s: float) -> bool:
        """Count one more if it is allowed, and return whether it was."""
        while self._at and self._at[0] <= now_s - self._window_s:
            self._at.popleft()
        if len(self._at) >= self._limit:
            return False
        self._at.append(now_s)
        return True
