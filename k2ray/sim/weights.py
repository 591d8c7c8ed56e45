"""Request weights of the REST interface: what a question costs, and who asked too much. Pure.

An address may use `weight_per_min` within each minute. Past that it gets 429 with Retry-After; going on regardless, it
is banned: 418 for `ban_s`, twice as long with every further ban, three days at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

TOO_MUCH, BANNED = 429, 418
MINUTE_S = 60.0
LONGEST_BAN_S = 3 * 86_400.0
REFUSALS_BEFORE_BAN = 5
"""Requests that may still come after a 429: those that were on their way are no ill will."""

_WEIGHTS = {
    "/api/v3/ping": 1,
    "/api/v3/time": 1,
    "/api/v3/exchangeInfo": 20,
    "/api/v3/trades": 25,
    "/api/v3/historicalTrades": 25,
    "/api/v3/aggTrades": 4,
}
_TICKER_WEIGHTS = ((20, 2), (100, 40))
_ALL_TICKERS_WEIGHT = 80
_DEPTH_WEIGHTS = ((100, 5), (500, 25), (1000, 50), (5000, 250))
DEFAULT_DEPTH_LIMIT = 100


def weight_of(path: str, query: Mapping[str, str]) -> int:
    """Return what a request costs; unknown paths cost 1."""
    if path == "/api/v3/ticker/24hr":
        symbols = query.get("symbols", "").count(",") + 1 if "symbols" in query else _TICKER_WEIGHTS[-1][0] + 1
        return next((weight for most, weight in _TICKER_WEIGHTS if symbols <= most), _ALL_TICKERS_WEIGHT)
    if path != "/api/v3/depth":
        return _WEIGHTS.get(path, 1)
    text = query.get("limit", "")
    limit = int(text) if text.isascii() and text.isdigit() else DEFAULT_DEPTH_LIMIT
    return next((weight for most, weight in _DEPTH_WEIGHTS if limit <= most), _DEPTH_WEIGHTS[-1][1])


@dataclass(frozen=True)
class Charge:
    """What came of a request.

    Attributes:
        used: Weight that the address used in this minute.
        status: Null: answer it. 429 or 418: refuse it, for `retry_after_s` more seconds.
    """

    used: int
    status: int | None = None
    retry_after_s: int = 0


@dataclass
class _Account:
    minute: int = -1
    used: int = 0
    refusals: int = 0
    bans: int = 0
    refused_until_s: float = float("-inf")
    status: int = TOO_MUCH


@dataclass
class Weights:
    """Every address's account.

    Args:
        weight_per_min: What an address may use in a minute.
        ban_s: The first ban's length.
    """

    weight_per_min: int
    ban_s: float
    _accounts: dict[str, _Account] = field(default_factory=dict)
    _ordered: tuple[int, float] | None = None

    def charge(self, address: str, weight: int, now_s: float) -> Charge:
        """Charge an address for a request that came at `now_s`."""
        account = self._accounts.setdefault(address, _Account())
        if self._ordered is not None and now_s < self._ordered[1]:
            status, until_s = self._ordered
            return Charge(account.used, status, max(1, math.ceil(until_s - now_s)))
        if now_s < account.refused_until_s:
            if account.status == TOO_MUCH:
                account.refusals += 1
                if account.refusals > REFUSALS_BEFORE_BAN:
                    self._ban(account, now_s)
            return self._refused(account, now_s)
        minute = int(now_s // MINUTE_S)
        if account.minute != minute:
            account.minute, account.used, account.refusals = minute, 0, 0
        account.used += weight
        if account.used > self.weight_per_min:
            self._refuse(account, TOO_MUCH, (minute + 1) * MINUTE_S)
            return self._refused(account, now_s)
        return Charge(account.used)

    def refuse(self, status: int, until_s: float) -> None:
        """Refuse every address with `status` until then."""
        self._ordered = (status, until_s)

    def forgive(self) -> None:
        """Forget all accounts and refusals."""
        self._accounts.clear()
        self._ordered = None

    def _ban(self, account: _Account, now_s: float) -> None:
        self._refuse(account, BANNED, now_s + min(self.ban_s * 2**account.bans, LONGEST_BAN_S))
        account.bans += 1

    @staticmethod
    def _refuse(account: _Account, status: int, until_s: float) -> None:
        account.status, account.refused_until_s, account.refusals = status, until_s, 0

    @staticmethod
    def _refused(account: _Account, now_s: float) -> Charge:
        return Charge(account.used, account.status, max(1, math.ceil(account.refused_until_s - now_s)))
