"""A replica's leases: taken while it answers, in no time, and told to the supervisor in the background.

When they are told, and why that is often enough: `k2ray/query/leases.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from k2ray.clock import SystemClock
from k2ray.errors import TryAgain
from k2ray.logs import get_logger
from k2ray.query.leases import Promises
from serve.work import Workers

TELL_TIMEOUT_S = 5.0
"""Past the deadline that telling has itself."""

TellLeases = Callable[[Mapping[str, Mapping[int, float]]], None]

_log = get_logger(__name__)


class CursorLeases:
    """Keeps the snapshots of this replica's cursors from being expired.

    Args:
        lease_s: How long a cursor lives after its page.
        tell: Takes table -> snapshot id -> seconds left to the supervisor. Blocking, raises `TryAgain`.
    """

    def __init__(self, lease_s: float, tell: TellLeases) -> None:
        self._promises = Promises(lease_s, SystemClock())
        self._tell = tell
        self._away = False
        self._workers = Workers("leases", 1, 0)

    def take(self, table: str, snapshot_id: int) -> None:
        """Lease a snapshot; returns at once, from any thread."""
        self._promises.take(table, snapshot_id)

    @contextlib.asynccontextmanager
    async def telling(self) -> AsyncIterator[None]:
        """Tell the supervisor until left, and at last what it has not heard yet."""
        task = asyncio.create_task(self._go_on_telling())
        try:
            yield
        finally:
            task.cancel()
            if self._promises.has_news:
                await self._tell_due()
            self._workers.close()

    async def _go_on_telling(self) -> None:
        while True:
            await asyncio.sleep(self._promises.pause_s)
            await self._tell_due()

    async def _tell_due(self) -> None:
        leases = self._promises.due()
        if not leases:
            return
        try:
            async with asyncio.timeout(TELL_TIMEOUT_S):
                await self._workers.run(self._tell, leases)
        except (TryAgain, TimeoutError) as error:
            self._promises.told(False)
            if not self._away:
                _log.warning("leases not told", reason=str(error))
            self._away = True
        else:
            self._promises.told(True)
            self._away = False


def nobody(leases: Mapping[str, Mapping[int, float]]) -> None:
    """Stand for a supervisor where there is none, and so no upkeep that could expire anything."""
