"""Each value is made once, however many ask; failures are told and not kept."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from k2ray.query.cache import OnceCache


def test_many_threads_make_a_value_once() -> None:
    cache: OnceCache[str, int] = OnceCache(4)
    made: list[int] = []
    inside, go = threading.Event(), threading.Event()

    def make() -> int:
        made.append(1)
        inside.set()
        go.wait(10)
        return 42

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(cache.get, "a", make)
        assert inside.wait(10)
        others = [pool.submit(cache.get, "a", make) for _ in range(7)]
        go.set()
        assert [future.result(10) for future in (first, *others)] == [42] * 8
    assert made == [1]


def test_a_failure_is_not_kept() -> None:
    cache: OnceCache[str, int] = OnceCache(4)

    def fail() -> int:
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        cache.get("a", fail)
    assert cache.get("a", lambda: 1) == 1


def test_the_least_recently_used_goes_first() -> None:
    cache: OnceCache[str, int] = OnceCache(2)
    for name in ("a", "b"):
        cache.get(name, lambda: 1)
    cache.get("a", lambda: 2)
    cache.get("c", lambda: 3)
    assert len(cache) == 2
    assert cache.get("a", lambda: 4) == 1
    assert cache.get("b", lambda: 5) == 5


def test_capacity_counts_weight() -> None:
    cache: OnceCache[str, str] = OnceCache(5, weigh=len)
    cache.get("a", lambda: "xxx")
    cache.get("b", lambda: "yyy")
    assert len(cache) == 1
    cache.get("c", lambda: "z" * 50)
    assert len(cache) == 1
