"""Blocking work off the event loop, bounded: a replica that is full says so at once instead of growing a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from k2ray.errors import TryAgain

P = ParamSpec("P")
T = TypeVar("T")


class Busy(TryAgain):
    """All threads are taken and the queue is full."""


class Workers:
    """Threads for blocking calls.

    Args:
        name: Of the threads.
        threads: How many calls run at once.
        waiting: How many more may wait.
    """

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._limit = threads + waiting
        self._taken = 0

    @property
    def taken(self) -> int:
        """Calls that run or wait."""
        return self._taken

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `call` returns, run in a thread.

        Raises:
            Busy: Too many calls are waiting; the client comes back later.
        """
        if self._taken >= self._limit:
            raise Busy(f"{self._taken} requests are being worked on, which is all that this replica takes")
        self._taken += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: call(*args, **kwargs))
        finally:
            self._taken -= 1

    async def stream(self, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Yield what `chunks` yields, each made in a thread."""
        loop = asyncio.get_running_loop()
        while True:
            chunk = await loop.run_in_executor(self._pool, next, chunks, None)
            if chunk is None:
                return
            yield chunk

    def close(self) -> None:
        """Wait for what runs, refuse what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)
