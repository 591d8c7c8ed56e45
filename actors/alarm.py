"""A pause that something can end early."""

from __future__ import annotations

import asyncio
import contextlib


class Alarm:
    """Lets a loop sleep until its time has come or somebody rings; for one event loop."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """End the pause, or the next one if there is none now."""
        self._rung.set()

    async def pause(self, seconds: float) -> None:
        """Wait for so long at most."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._rung.wait(), seconds)
        self._rung.clear()
