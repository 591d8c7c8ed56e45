"""Wait for a condition instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(look: Callable[[], T], what: str, *, timeout_s: float = 30.0, pause_s: float = 0.05) -> T:
    """Call `look` until it returns something true, and return that.

    Raises:
        AssertionError: It did not within `timeout_s`; says `what` was awaited and what was seen last.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what}; last seen: {seen!r}")
        time.sleep(pause_s)
