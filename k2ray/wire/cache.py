"""A process's bounded memory of schemas: the least recently used one goes when it is full.

What is kept is immutable (an id stands for its schema for ever), so nothing here ever goes stale.

Not its job: where a schema comes from when it is not here (`schemas.py`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from k2ray import metrics

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SchemaCache(Generic[K, V]):
    """Keeps the `size` most recently used values. Threads may share it.

    Args:
        name: For the metrics: which cache of this process.
        size: Most values that are kept.

    Attributes:
        hits, misses, evictions: Counts since the start.
    """

    def __init__(self, name: str, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.misses = self.evictions = 0
        self._metrics = (
            metrics.SCHEMA_CACHE_SIZE.labels(name),
            metrics.SCHEMA_CACHE_HITS.labels(name),
            metrics.SCHEMA_CACHE_MISSES.labels(name),
            metrics.SCHEMA_CACHE_EVICTIONS.labels(name),
        )

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: K) -> bool:
        return key in self._kept

    def get(self, key: K, load: Callable[[K], V]) -> V:
        """Return the key's value; `load` it where it is not kept. What `load` raises is not kept.

        Two threads may load the same key at the same time; both get what is kept in the end.
        """
        size, hits, misses, evictions = self._metrics
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                self.hits += 1
                hits.inc()
                return self._kept[key]
        self.misses += 1
        misses.inc()
        loaded = load(key)
        with self._lock:
            value = self._kept.setdefault(key, loaded)
            self._kept.move_to_end(key)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
                self.evictions += 1
                evictions.inc()
            size.set(len(self._kept))
        return value
