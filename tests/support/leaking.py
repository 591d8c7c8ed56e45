"""A feed that works and leaks."""

from __future__ import annotations

import asyncio
import os

from actors.feed import FeedActor

LEAKING_FEED = "tests.support.leaking:LeakingFeed"

PIECE_BYTES = 400_000
"""Each of 50 a second."""

ENOUGH_BYTES = 450_000_000
"""Over the soft limit of 500 MB together with what a feed takes anyway, and below the hard one."""


class LeakingFeed(FeedActor):
    """Records as any feed does, and keeps 20 MB more every second until it has enough."""

    async def main(self) -> None:
        leak = asyncio.create_task(self._leak())
        try:
            await super().main()
        finally:
            leak.cancel()

    async def _leak(self) -> None:
        hoard: list[bytes] = []
        while len(hoard) * PIECE_BYTES < ENOUGH_BYTES:
            hoard.append(os.urandom(PIECE_BYTES))
            await asyncio.sleep(0.02)
        await asyncio.Event().wait()
