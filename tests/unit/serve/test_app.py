"""How the Serve deployment is built; nothing is started."""

from __future__ import annotations

import pytest

from actors.sampling import MemorySampler
from k2ray.errors import SettingsError
from k2ray.settings import Memory, load_settings
from serve.app import MarketApi, TooMuchMemory, app


@pytest.mark.parametrize("timeout_s", [0.5, 60, 600])
def test_a_replica_that_is_replaced_has_time_for_the_longest_query(timeout_s: float) -> None:
    """A deployment cut queries that ran for more than 20 s, though each may run for `api.timeout_s`."""
    settings = load_settings(arguments={"data_dir": "d", "api": {"timeout_s": timeout_s}}, environ={})
    built = app({"settings": settings.to_json()})
    assert built._bound_deployment._deployment_config.graceful_shutdown_timeout_s > timeout_s + 5


async def test_a_replica_over_its_hard_limit_calls_itself_unhealthy_and_serve_replaces_it() -> None:
    """A leak of the API was shown and never ended: no policy was about its replicas."""
    settings = load_settings(arguments={"data_dir": "d"}, environ={})
    limit = settings.memory.api.hard_bytes
    rss, now_s = limit, 0.0
    sampler = MemorySampler(Memory(), look=lambda: (rss, 0, 0), clock=lambda: now_s)
    replica = MarketApi(settings.to_json(), sampler, lambda: now_s)
    rss = limit + 1_000_000
    await replica.check_health()  # a young one is left alone, whatever it takes
    now_s = 61.0
    with pytest.raises(TooMuchMemory, match="over the hard limit of 3,500 MB"):
        await replica.check_health()
    rss = limit
    await replica.check_health()


def test_a_limit_below_what_duckdb_may_take_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"memory\.api\.hard_bytes"):
        load_settings(arguments={"data_dir": "d", "api": {"memory_bytes": 4_000_000_000}}, environ={})
