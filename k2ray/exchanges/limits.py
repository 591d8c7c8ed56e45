"""What an exchange lets one address do, counted: connects and request weight in sliding windows, and bans. Pure.

One `Budgets` an exchange lives in the supervisor (`actors/limits.py`), so that all feeds and the backfill of one
address share it. Each window is longer than the exchange's own and holds less than it allows: between our count and the
exchange's lies the time that a request is under way, and whatever runs while the supervisor is away takes from the
reserve (`fallback`). So the exchange never counts more than its limit, which windows of its own it may use.

Time is an argument: seconds of a clock that does not step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from k2ray.errors import BadInput
from k2ray.settings import ExchangeSettings

SHARED_PART = 0.8
"""What all together may use of a limit, or less; the rest is for those that cannot reach the supervisor."""

UNDER_WAY_S = 15.0
"""How much later the exchange may count what we counted: a connect takes up to its timeout, and is tried once."""

_EPSILON_S = 1e-6


@dataclass(frozen=True)
class Limit:
    """At most `amount` within any `window_s` seconds."""

    amount: int
    window_s: float


@dataclass
class _Window:
    limit: Limit
    taken: deque[tuple[float, int]] = field(default_factory=deque)
    used: int = 0
    banned_until_s: float = float("-inf")

    def forget(self, now_s: float) -> None:
        while self.taken and self.taken[0][0] + self.limit.window_s <= now_s:
            self.used -= self.taken.popleft()[1]

    def add(self, amount: int, now_s: float) -> None:
        self.taken.append((now_s, amount))
        self.used += amount

    def wait_s(self, amount: int, now_s: float) -> float:
        """Return how long until `amount` fits, if nobody else takes any."""
        ban_s = max(0.0, self.banned_until_s - now_s)
        excess = self.used + amount - self.limit.amount
        for at_s, part in self.taken:
            if excess <= 0:
                break
            excess -= part
            ban_s = max(ban_s, at_s + self.limit.window_s - now_s, _EPSILON_S)
        return ban_s


class Budgets:
    """Sliding windows of one exchange's resources.

    Args:
        limits: Resource (`connects`, `weight`, ...) -> its limit.
    """

    def __init__(self, limits: Mapping[str, Limit]) -> None:
        self._windows = {resource: _Window(limit) for resource, limit in limits.items()}

    def take(self, resource: str, amount: int, now_s: float) -> float:
        """Take `amount`, or nothing.

        Returns:
            0 when granted; else the seconds after which to ask again, nothing was taken. Others may be quicker, so ask
            again in a loop, with jitter.

        Raises:
            BadInput: Such a resource is not known, or its limit is below `amount`: waiting would never help.
        """
        window = self._window(resource, now_s)
        if not 0 < amount <= window.limit.amount:
            raise BadInput(f"{resource}: {amount} can never be granted, the limit is {window.limit.amount}")
        wait_s = window.wait_s(amount, now_s)
        if wait_s <= 0.0:
            window.add(amount, now_s)
            return 0.0
        return wait_s

    def ban(self, resource: str, until_s: float) -> None:
        """Grant nothing before `until_s`: the exchange said so (429, 418, Retry-After). A longer ban stays."""
        window = self._window(resource, float("-inf"))
        window.banned_until_s = max(window.banned_until_s, until_s)

    def observe(self, resource: str, used: int, now_s: float) -> None:
        """Believe the exchange where it counts more than we did: somebody else on this address takes from it too."""
        window = self._window(resource, now_s)
        if used > window.used:
            window.add(used - window.used, now_s)

    def left(self, resource: str, now_s: float) -> int:
        """Return what could be taken now; 0 while banned."""
        window = self._window(resource, now_s)
        return 0 if now_s < window.banned_until_s else max(0, window.limit.amount - window.used)

    @property
    def resources(self) -> tuple[str, ...]:
        """The names of what is counted."""
        return tuple(self._windows)

    def most(self, resource: str) -> int:
        """Return the most that can ever be granted at once."""
        return self._window(resource, float("-inf")).limit.amount

    def describe(self, now_s: float) -> dict[str, dict[str, float]]:
        """Return resource -> `left`, `limit`, `banned_s` (0 if not), for status and metrics."""
        return {
            resource: {
                "left": self.left(resource, now_s),
                "limit": window.limit.amount,
                "banned_s": max(0.0, window.banned_until_s - now_s),
            }
            for resource, window in self._windows.items()
        }

    def remember(self, now_s: float) -> dict[str, Any]:
        """Return what counts, as plain values with ages instead of times: another process has another clock."""
        for window in self._windows.values():
            window.forget(now_s)
        return {
            resource: {
                "taken": [[now_s - at_s, amount] for at_s, amount in window.taken],
                "banned_s": max(0.0, window.banned_until_s - now_s),
            }
            for resource, window in self._windows.items()
        }

    def recall(self, memory: Mapping[str, Any], now_s: float, away_s: float = 0.0) -> None:
        """Take over what `remember` returned.

        Args:
            memory: Resources that are not known here are left out.
            now_s: This process's clock.
            away_s: How long ago it was written; 0 if that is not known, which only makes us more careful.
        """
        for resource, known in memory.items():
            window = self._windows.get(resource)
            if window is None:
                continue
            entries = sorted((now_s - away_s - float(age_s), int(amount)) for age_s, amount in known["taken"])
            window.taken = deque(entries)
            window.used = sum(amount for _, amount in entries)
            window.forget(now_s)
            if known["banned_s"] > away_s:
                self.ban(resource, now_s + float(known["banned_s"]) - away_s)

    def _window(self, resource: str, now_s: float) -> _Window:
        window = self._windows.get(resource)
        if window is None:
            raise BadInput(f"{resource!r} is none of {', '.join(self._windows)}")
        window.forget(now_s)
        return window


def _parties(settings: ExchangeSettings) -> dict[str, int]:
    """Return how many processes take of each resource: every feed of both, the backfill of the weight."""
    feeds = settings.connections * settings.redundancy
    return {"connects": feeds, "weight": feeds + 1}


def _limits(settings: ExchangeSettings) -> dict[str, tuple[Limit, int]]:
    """Return each limit, in our longer window, and how much of it is the reserve: a fifth, or one for each process."""
    limits, parties = settings.limits, _parties(settings)
    known = {
        "connects": Limit(limits.connects, limits.connects_window_s + UNDER_WAY_S),
        "weight": Limit(limits.weight, limits.weight_window_s + UNDER_WAY_S),
    }
    return {
        resource: (
            limit,
            min(limit.amount // 2, max(limit.amount - int(limit.amount * SHARED_PART), parties[resource])),
        )
        for resource, limit in known.items()
    }


def shared_budgets(settings: ExchangeSettings) -> Budgets:
    """Return the budgets that all processes of one address share."""
    return Budgets(
        {
            resource: Limit(limit.amount - reserve, limit.window_s)
            for resource, (limit, reserve) in _limits(settings).items()
        }
    )


def fallback(settings: ExchangeSettings) -> Budgets:
    """Return what one process may take by itself while nobody can be asked: its part of the reserve, which may be 0."""
    parties = _parties(settings)
    return Budgets(
        {
            resource: Limit(reserve // parties[resource], limit.window_s)
            for resource, (limit, reserve) in _limits(settings).items()
        }
    )
