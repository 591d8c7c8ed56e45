"""A bounded cache in which each value is made once, however many threads ask for it at the same time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class OnceCache(Generic[K, V]):
    """Least recently used values go first; a failure is told to all who waited for it and is not kept.

    Args:
        capacity: How many units stay.
        weigh: Units of a value; 1 each unless given.
    """

    def __init__(self, capacity: int, weigh: Callable[[V], int] | None = None) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._lock = threading.Lock()
        self._values: OrderedDict[K, V] = OrderedDict()
        self._pending: dict[K, Future[V]] = {}
        self._weight = 0

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of `key`, made by `make` in the first thread that asks."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            waiting = self._pending.get(key)
            if waiting is None:
                future: Future[V] = Future()
                self._pending[key] = future
        if waiting is not None:
            return waiting.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._pending[key]
            self._values[key] = value
            self._weight += self._units(value)
            while self._weight > self._capacity and len(self._values) > 1:
                _, dropped = self._values.popitem(last=False)
                self._weight -= self._units(dropped)
        future.set_result(value)
        return value

    def __len__(self) -> int:
        return len(self._values)

    def _units(self, value: V) -> int:
        return self._weigh(value) if self._weigh else 1
