"""Settings, read once at the start and passed on as values: `load_settings` reads them, `sections.py` joins them."""

from k2ray.settings.load import CONFIG_VARIABLE, DEFAULT_CONFIG, load_settings
from k2ray.settings.recording import Backfill, Binance, ExchangeLimits, Exchanges, ExchangeSettings, Feed
from k2ray.settings.running import Api, Deploy, Memory, MemoryLimits, RaySettings, Supervision, Tls
from k2ray.settings.secrets import MASK
from k2ray.settings.section import Section
from k2ray.settings.sections import ENV_PREFIX, Settings
from k2ray.settings.storing import Catalog, Commit, Kafka, Lake, Upkeep, Wire

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_CONFIG",
    "ENV_PREFIX",
    "MASK",
    "Api",
    "Backfill",
    "Binance",
    "Catalog",
    "Commit",
    "Deploy",
    "ExchangeLimits",
    "ExchangeSettings",
    "Exchanges",
    "Feed",
    "Kafka",
    "Lake",
    "Memory",
    "MemoryLimits",
    "RaySettings",
    "Section",
    "Settings",
    "Supervision",
    "Tls",
    "Upkeep",
    "Wire",
    "load_settings",
]
