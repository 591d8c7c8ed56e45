"""Ask an exchange by REST: verified TLS, within the shared budget, its Retry-After obeyed. Answers are bytes.

A question waits for its weight before it is sent: first of this process's own share (`Budgets` of one resource), then
of the budget that all processes of the address share, through functions that the caller passes. 429 and 418 ban both
for as long as the exchange says; what it counts itself (X-MBX-USED-WEIGHT-1M) is believed where it is more.

Next in the flow: `session.py` reads the answers.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable
from types import TracebackType
from typing import Protocol

import httpx

from k2ray import metrics
from k2ray.clock import Clock
from k2ray.errors import BadFrame, ExchangeUnavailable
from k2ray.exchanges.base import RestAdapter, RestQuestion
from k2ray.exchanges.limits import Budgets, Limit
from k2ray.exchanges.retry_after import retry_after_s
from k2ray.feed.transport import explain
from k2ray.logs import get_logger

REQUEST_TIMEOUT_S = 10.0
LONGEST_PAUSE_S = 15.0
DEFAULT_BAN_S = {429: 60.0, 418: 120.0}
"""When the exchange bans without saying for how long: its window, and the shortest ban that it documents."""

WEIGHT = "weight"
_OUTCOMES = {429: "limited", 418: "banned"}

_log = get_logger(__name__)


class SharedBudget(Protocol):
    """What all processes of one address share; `actors.limits.Permits` bound to an exchange."""

    def permit(self, amount: int) -> Awaitable[None]:
        """Wait until so much weight is granted."""

    def ban(self, for_s: float) -> Awaitable[None]:
        """Tell all to wait."""

    def observe(self, used: int) -> Awaitable[None]:
        """Tell what the exchange counts."""


class RestReader:
    """Asks one exchange; an async context manager.

    Args:
        adapter: Knows its limits and headers.
        rest_url: REST base URL.
        tls: From `transport.tls_context`.
        limit: The weight that this process takes at most.
        shared: The budget that others take from as well.
        clock: Time.
        transport: Of httpx; tests pass one that opens no socket.

    Attributes:
        calls: Questions by outcome.
        banned_until_s: Until when the exchange wants nothing to be asked.
        weight_left: What this process may take, as of the last `show`.
    """

    def __init__(
        self,
        adapter: RestAdapter,
        rest_url: str,
        tls: ssl.SSLContext,
        limit: Limit,
        shared: SharedBudget,
        clock: Clock,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._adapter = adapter
        self._rest_url = rest_url
        self._share = Budgets({WEIGHT: limit})
        self._shared = shared
        self._clock = clock
        self._client = httpx.AsyncClient(verify=tls, timeout=REQUEST_TIMEOUT_S, trust_env=False, transport=transport)
        self.calls: dict[str, int] = {}
        self.banned_until_s = float("-inf")
        self.weight_left = limit.amount

    async def __aenter__(self) -> RestReader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    def show(self) -> None:
        """Bring `weight_left` and the gauges up to date; from the event loop's thread."""
        now_s = self._clock.monotonic_s()
        self.weight_left = self._share.left(WEIGHT, now_s)
        metrics.BACKFILL_BANNED_SECONDS.labels(self._adapter.name).set(max(0.0, self.banned_until_s - now_s))
        metrics.BACKFILL_WEIGHT_LEFT.labels(self._adapter.name).set(self.weight_left)

    async def ask(self, question: RestQuestion) -> bytes:
        """Return the body of a 200.

        Raises:
            ExchangeUnavailable: No answer, or one that says later; ask again with backoff. Bans are waited for inside.
            BadFrame: It refuses this question (another 4xx).
        """
        await self._wait(question.weight)
        try:
            response = await self._client.get(self._rest_url + question.path, headers=question.headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            self._count("failed")
            raise ExchangeUnavailable(f"{_path(question)}: {explain(error.__cause__ or error)}") from None
        status = response.status_code
        used = response.headers.get(self._adapter.used_weight_header, "")
        if used.isdecimal():
            await self._shared.observe(int(used))
        if status in _OUTCOMES:
            await self._obey(status, retry_after_s(response.headers.get("retry-after"), response.headers.get("date")))
            raise ExchangeUnavailable(f"{_path(question)}: HTTP {status}: too many requests")
        if status == httpx.codes.OK:
            self._count("answered")
            return response.content
        if 400 <= status < 500:
            self._count("refused")
            raise BadFrame(f"{_path(question)}: HTTP {status}: {response.text[:200]}")
        self._count("failed")
        raise ExchangeUnavailable(f"{_path(question)}: HTTP {status}")

    async def _wait(self, weight: int) -> None:
        while (wait_s := self._share.take(WEIGHT, weight, self._clock.monotonic_s())) > 0.0:
            self.show()
            await asyncio.sleep(min(wait_s, LONGEST_PAUSE_S) + random.uniform(0.0, 0.05))
        self.show()
        await self._shared.permit(weight)

    async def _obey(self, status: int, asked_s: float | None) -> None:
        """Ask nothing for as long as the exchange says: whoever goes on is banned for longer and longer."""
        for_s = DEFAULT_BAN_S[status] if asked_s is None else asked_s
        now_s = self._clock.monotonic_s()
        self.banned_until_s = max(self.banned_until_s, now_s + for_s)
        self._share.ban(WEIGHT, now_s + for_s)
        self._count(_OUTCOMES[status])
        _log.warning("exchange_limits_us", exchange=self._adapter.name, status=status, for_s=for_s)
        await self._shared.ban(for_s)

    def _count(self, outcome: str) -> None:
        self.calls[outcome] = self.calls.get(outcome, 0) + 1
        metrics.BACKFILL_CALLS.labels(self._adapter.name, outcome).inc()
        self.show()


def _path(question: RestQuestion) -> str:
    return question.path.partition("?")[0]
