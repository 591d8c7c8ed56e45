"""Settings of a feed that runs by itself, in the benchmark's own process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from k2ray.log.topics import ensure_topics
from k2ray.settings import Settings
from k2ray.sim.process import Sim

SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT")


def feed_settings(sim: Sim, bootstrap: str, folder: Path, transport: str, channels: Sequence[str]) -> Settings:
    """Return settings whose topics exist and are this run's own, named after its folder."""
    settings = Settings.model_validate(
        {
            "tls": {"ca_file": str(sim.ca_file)},
            "exchanges": {
                "binance": {
                    "ws_url": sim.ws_url,
                    "rest_url": sim.rest_url,
                    "channels": list(channels),
                    "symbols": SYMBOLS,
                }
            },
            "feed": {"transport": transport},
            "kafka": {"bootstrap_servers": bootstrap, "topic_prefix": f"bench_{folder.name}"},
        }
    )
    ensure_topics(bootstrap, settings)
    return settings
