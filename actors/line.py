"""A line from an actor's event loop to the supervisor: with a deadline, and found again after it was lost."""

from __future__ import annotations

import asyncio
from typing import Any

from actors import edge
from actors.names import SUPERVISOR
from k2ray.errors import SupervisorUnavailable

ANSWER_TIMEOUT_S = 2.0
"""A supervisor that needs longer is away; one that restarts answers after 2 s."""


class SupervisorLine:
    """Calls the supervisor of a system.

    Args:
        namespace: `DataDir.namespace`.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._handle: Any = None

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and return its answer.

        Raises:
            SupervisorUnavailable: No answer in time, or nobody lives to give one; call again later.
            K2rayError: What the method raised, if it is one of ours.
        """
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                if self._handle is None:
                    self._handle = await asyncio.to_thread(edge.find, SUPERVISOR, self._namespace)
                return await edge.answer(self._handle, method, *arguments)
        except TimeoutError:
            raise SupervisorUnavailable(f"no answer to {method}() within {ANSWER_TIMEOUT_S:g} s") from None
        except SupervisorUnavailable:
            self._handle = None
            raise
