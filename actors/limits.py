"""The limits of an exchange shared by all actors of one address: kept by the supervisor, asked for through `Permits`.

`LimitDesk` is the supervisor's side: it writes down what it grants before it answers (`run/limits.json`), so that the
next supervisor goes on counting. `Permits` is everybody else's: it asks until granted, and takes from this process's
own small reserve while no supervisor answers.

What is counted, and how: `k2ray/exchanges/limits.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from pathlib import Path
from typing import Any

from actors.line import SupervisorLine
from k2ray import metrics
from k2ray.errors import SupervisorUnavailable, TryAgain
from k2ray.exchanges.limits import Budgets, fallback, shared_budgets
from k2ray.logs import get_logger
from k2ray.settings import Settings

LONGEST_PAUSE_S = 15.0
"""However long the wait: ask again after this, others may have given up what they wanted."""

FILE = "limits.json"

_log = get_logger(__name__)


def _boot() -> str:
    """Name the clock that `time.monotonic` reads: the same in all processes until the machine starts anew."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"process {os.getpid()}"


class LimitDesk:
    """Counts for all exchanges of a system. One lives in the supervisor.

    Args:
        run: The folder of `limits.json`.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / FILE
        self._boot = _boot()
        self._budgets: dict[str, Budgets] = {}

    def configure(self, settings: Settings) -> None:
        """Use the limits of these settings; what was taken before stays counted."""
        memory = self._read()
        now_s = time.monotonic()
        same_clock = memory.get("boot") == self._boot
        away_s = max(0.0, now_s - float(memory.get("at_s", now_s))) if same_clock else 0.0
        self._budgets = {}
        for name, exchange in settings.exchanges.enabled().items():
            budgets = self._budgets[name] = shared_budgets(exchange)
            budgets.recall(memory.get("exchanges", {}).get(name, {}), now_s, away_s)

    def permit(self, exchange: str, resource: str, amount: int) -> float:
        """Grant (0) or say after how many seconds to ask again; see `Budgets.take`."""
        wait_s = self._of(exchange).take(resource, amount, time.monotonic())
        if wait_s <= 0.0:
            self._write()
        return wait_s

    def ban(self, exchange: str, resource: str, for_s: float) -> None:
        """Grant nothing for so long."""
        self._of(exchange).ban(resource, time.monotonic() + for_s)
        self._write()

    def observe(self, exchange: str, resource: str, used: int) -> None:
        """Believe the exchange where it counts more than we did."""
        self._of(exchange).observe(resource, used, time.monotonic())

    def describe(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return exchange -> resource -> `left`, `limit`, `banned_s`."""
        now_s = time.monotonic()
        return {name: budgets.describe(now_s) for name, budgets in self._budgets.items()}

    def show(self) -> None:
        """Set the gauges."""
        for exchange, resources in self.describe().items():
            for resource, known in resources.items():
                metrics.EXCHANGE_BUDGET_LEFT.labels(exchange, resource).set(known["left"])
                metrics.EXCHANGE_BANNED.labels(exchange, resource).set(known["banned_s"])

    def _of(self, exchange: str) -> Budgets:
        budgets = self._budgets.get(exchange)
        if budgets is None:
            raise SupervisorUnavailable(f"the limits of {exchange!r} are not known yet")
        return budgets

    def _write(self) -> None:
        now_s = time.monotonic()
        exchanges = {name: budgets.remember(now_s) for name, budgets in self._budgets.items()}
        text = json.dumps({"boot": self._boot, "at_s": now_s, "exchanges": exchanges})
        # Not by `write_private`: it holds no secret, and must survive this process, not a power cut, after which nobody
        # has connects under way. Its fsync (2.7 ms, 12 at worst) would hold up the supervisor's loop at each grant.
        temporary = self._path.with_name(f".{FILE}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._path)

    def _read(self) -> dict[str, Any]:
        try:
            memory: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return memory


class Permits:
    """Asks the supervisor for permission, from an actor's event loop.

    Args:
        namespace: `DataDir.namespace`.
        settings: For the reserve that this process may use while no supervisor answers.
    """

    def __init__(self, namespace: str, settings: Settings) -> None:
        self._line = SupervisorLine(namespace)
        self._reserves = {name: fallback(exchange) for name, exchange in settings.exchanges.enabled().items()}

    async def permit(self, exchange: str, resource: str, amount: int = 1, *, deadline_s: float | None = None) -> None:
        """Wait until `amount` is granted; cancelling is safe.

        Args:
            exchange: Name in the settings.
            resource: `connects` or `weight`.
            amount: How much of it.
            deadline_s: Longest wait; None waits for ever.

        Raises:
            TryAgain: Not granted within the deadline.
            BadInput: More than the limit itself: waiting would never help.
        """
        end_s = None if deadline_s is None else time.monotonic() + deadline_s
        while True:
            wait_s = await self.ask(exchange, resource, amount)
            if wait_s <= 0.0:
                return
            if end_s is not None and time.monotonic() + wait_s > end_s:
                raise TryAgain(f"{exchange}: {amount} of {resource} not granted, free in {wait_s:.1f} s")
            pause_s = min(wait_s, LONGEST_PAUSE_S)
            # Jitter on top: all who were told the same wait would come back in the same moment.
            await asyncio.sleep(pause_s + random.uniform(0.0, 0.1 + pause_s / 10))

    async def ask(self, exchange: str, resource: str, amount: int = 1) -> float:
        """Ask once: 0 when granted, else the seconds to wait. Without a supervisor the reserve decides."""
        try:
            return float(await self._line.call("permit", exchange, resource, amount))
        except SupervisorUnavailable as error:
            reserve = self._reserves[exchange]
            enough = amount <= reserve.most(resource)
            wait_s = reserve.take(resource, amount, time.monotonic()) if enough else LONGEST_PAUSE_S
            _log.info("permit_from_reserve", exchange=exchange, resource=resource, wait_s=wait_s, reason=str(error))
            return wait_s

    async def ban(self, exchange: str, resource: str, for_s: float) -> None:
        """Tell all that nothing is granted for so long; this process remembers it too."""
        self._reserves[exchange].ban(resource, time.monotonic() + for_s)
        try:
            await self._line.call("ban", exchange, resource, for_s)
        except SupervisorUnavailable as error:
            _log.warning("ban_not_told", exchange=exchange, resource=resource, for_s=for_s, reason=str(error))

    async def observe(self, exchange: str, resource: str, used: int) -> None:
        """Tell what the exchange itself counts; without a supervisor only this process learns it."""
        self._reserves[exchange].observe(resource, used, time.monotonic())
        try:
            await self._line.call("observe", exchange, resource, used)
        except SupervisorUnavailable:
            return
