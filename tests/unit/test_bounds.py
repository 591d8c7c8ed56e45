"""What an operator may ask for: defaults and bounds of the settings that keep a system alive for months."""

from __future__ import annotations

from typing import Any

import pytest

from k2ray.errors import SettingsError
from k2ray.settings import Settings, load_settings

HOUR_S = 3_600


def loaded(dotted: str, value: Any) -> Settings:
    for name in reversed(dotted.split(".")):
        value = {name: value}
    return load_settings(arguments={"data_dir": "d", **value}, environ={})


def at(settings: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        settings = getattr(settings, name)
    return settings


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("feed.rotate_every_s", 4 * HOUR_S),
        ("feed.ping_interval_s", 180),
        ("feed.pong_timeout_s", 10),
        ("feed.stale_after_s", 30),
        ("feed.time_compression", 1),
        ("exchanges.binance.redundancy", 1),
        ("exchanges.binance.limits.connects", 300),
        ("exchanges.binance.limits.connects_window_s", 300),
        ("exchanges.binance.limits.messages_per_s", 5),
        ("exchanges.binance.limits.weight", 6_000),
        ("exchanges.binance.limits.weight_window_s", 60),
        ("memory.sample_interval_s", 30),
        ("memory.window", 120),
        ("memory.leak_score", 0.8),
        ("wire.cache_size", 10),
        ("wire.compatibility", "BACKWARD"),
    ],
)
def test_the_defaults_are_what_is_promised(name: str, default: Any) -> None:
    assert at(load_settings(arguments={"data_dir": "d"}, environ={}), name) == default


@pytest.mark.parametrize(
    ("name", "least", "most", "below", "above"),
    [
        ("feed.rotate_every_s", HOUR_S, 24 * HOUR_S, HOUR_S - 1, 24 * HOUR_S + 1),
        ("feed.ping_interval_s", 30, 600, 29, 601),
        ("feed.pong_timeout_s", 5, 60, 4, 61),
        ("feed.rotate_jitter", 0, 0.5, -0.1, 0.6),
        ("exchanges.binance.redundancy", 1, 2, 0, 3),
        ("wire.cache_size", 1, 100, 0, 101),
        ("memory.leak_score", 0.01, 0.99, 0, 1),
    ],
)
def test_what_is_out_of_bounds_stops_the_start_and_is_named(
    name: str, least: float, most: float, below: float, above: float
) -> None:
    for value in (least, most):
        assert at(loaded(name, value), name) == value
    for value in (below, above):
        with pytest.raises(SettingsError, match=name.rpartition(".")[2]):
            loaded(name, value)


@pytest.mark.parametrize("role", ["feed", "backfill", "writer", "upkeep", "serializer", "supervisor"])
def test_every_role_has_memory_limits_of_its_own(role: str) -> None:
    limits = {"soft_bytes": 123_000_000, "hard_bytes": 456_000_000}
    assert at(loaded(f"memory.{role}", limits), f"memory.{role}").model_dump() == limits
    with pytest.raises(SettingsError, match="soft_bytes"):
        loaded(f"memory.{role}", {"soft_bytes": 2, "hard_bytes": 1})
