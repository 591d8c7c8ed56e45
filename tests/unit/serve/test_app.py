"""How the Serve deployment is built; nothing is started."""

from __future__ import annotations

import pytest

from k2ray.settings import load_settings
from serve.app import app


@pytest.mark.parametrize("timeout_s", [0.5, 60, 600])
def test_a_replica_that_is_replaced_has_time_for_the_longest_query(timeout_s: float) -> None:
    """A deployment cut queries that ran for more than 20 s, though each may run for `api.timeout_s`."""
    settings = load_settings(arguments={"data_dir": "d", "api": {"timeout_s": timeout_s}}, environ={})
    built = app({"settings": settings.to_json()})
    assert built._bound_deployment._deployment_config.graceful_shutdown_timeout_s > timeout_s + 5
