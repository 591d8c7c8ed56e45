"""The settings of the wire: bounds, and a secret that is never shown."""

from __future__ import annotations

from typing import Any

import pytest

from k2ray.errors import SettingsError
from k2ray.settings import MASK, load_settings


@pytest.mark.parametrize(
    "wire",
    [
        {"cache_size": 0},
        {"cache_size": 101},
        {"codec": "json"},
        {"compatibility": "NONE"},
        {"registry_url": "kafka://x"},
        {"registry_url": "https://user:pw@registry"},
        {"registry_timeout_s": 0},
    ],
)
def test_what_is_out_of_bounds_stops_the_start(wire: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="wire"):
        load_settings(arguments={"wire": wire}, environ={})


def test_the_registrys_password_is_never_shown() -> None:
    settings = load_settings(
        arguments={"wire": {"registry_url": "https://registry/", "registry_user": "k2"}},
        environ={"K2RAY_WIRE__REGISTRY_PASSWORD": "hunter2"},
    )
    assert (settings.wire.registry_url, settings.wire.registry_password) == ("https://registry", "hunter2")
    assert settings.describe()["wire"]["registry_password"] == MASK
    assert "hunter2" not in repr(settings)


def test_arrow_and_the_built_in_registry_are_the_defaults() -> None:
    wire = load_settings(environ={}).wire
    assert (wire.codec, wire.registry_url, wire.compatibility, wire.cache_size) == ("arrow", None, "BACKWARD", 10)
