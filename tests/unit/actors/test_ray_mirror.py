from __future__ import annotations

import pytest

from actors import ray_mirror
from actors.ray_mirror import GONE_AFTER, RayMirror

SERIES: dict[tuple[str, str], float] = {}


class FakeGauge:
    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name = name

    def set(self, value: float, tags: dict[str, str]) -> None:
        SERIES[self.name, tags["actor"]] = value


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> RayMirror:
    SERIES.clear()
    monkeypatch.setattr(ray_mirror, "Gauge", FakeGauge)
    return RayMirror()


def rows(count: int) -> str:
    return f"# HELP k2ray_rows_total Rows.\n# TYPE k2ray_rows_total counter\nk2ray_rows_total {count}.0\n"


def value(actor: str) -> float | None:
    (found,) = {number for (_, name), number in SERIES.items() if name == actor} or {None}
    return found


def test_what_an_actor_that_was_taken_away_counted_is_in_no_sum_any_more(mirror: RayMirror) -> None:
    """Ray kept showing it, at its last value, until the supervisor's end."""
    mirror.show({"feed:binance:0": rows(5), "feed:binance:1": rows(7)})
    assert (value("feed:binance:0"), value("feed:binance:1")) == (5, 7)
    for _ in range(GONE_AFTER):
        mirror.show({"feed:binance:0": rows(6)})
    assert (value("feed:binance:0"), value("feed:binance:1")) == (6, 0)
    mirror.show({"feed:binance:0": rows(6), "feed:binance:1": rows(1)})
    assert value("feed:binance:1") == 1


def test_an_actor_that_is_only_silent_for_a_while_keeps_its_counts(mirror: RayMirror) -> None:
    mirror.show({"feed:binance:0": rows(5)})
    for _ in range(3):
        for _ in range(GONE_AFTER - 1):
            mirror.show({})
        assert value("feed:binance:0") == 5
        mirror.show({"feed:binance:0": rows(5)})
