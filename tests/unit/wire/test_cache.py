"""The bounded memory of schemas: what goes, what stays, and that its metrics say so."""

from __future__ import annotations

import pytest

from k2ray import metrics
from k2ray.errors import RegistryUnavailable
from k2ray.wire.cache import SchemaCache


def read(name: str) -> tuple[float, float, float, float]:
    found = (
        metrics.SCHEMA_CACHE_SIZE,
        metrics.SCHEMA_CACHE_HITS,
        metrics.SCHEMA_CACHE_MISSES,
        metrics.SCHEMA_CACHE_EVICTIONS,
    )
    return tuple(metric.labels(name)._value.get() for metric in found)  # type: ignore[return-value]


def test_fifteen_schemas_in_a_cache_of_ten_are_five_evictions() -> None:
    cache: SchemaCache[int, str] = SchemaCache("fifteen", 10)
    for number in range(15):
        assert cache.get(number, str) == str(number)
    assert (len(cache), cache.evictions, cache.misses, cache.hits) == (10, 5, 15, 0)
    assert read("fifteen") == (10, 0, 15, 5)
    assert [number for number in range(15) if number in cache] == list(range(5, 15))


def test_the_least_recently_used_one_goes() -> None:
    cache: SchemaCache[str, str] = SchemaCache("used", 2)
    for key in "abac":
        cache.get(key, str.upper)
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)
    assert read("used") == (2, 1, 3, 1)


def test_what_could_not_be_loaded_is_asked_for_again() -> None:
    cache: SchemaCache[int, int] = SchemaCache("failing", 1)

    def away(_: int) -> int:
        raise RegistryUnavailable("away")

    with pytest.raises(RegistryUnavailable):
        cache.get(1, away)
    assert cache.get(1, lambda key: key) == 1
    assert len(cache) == 1
