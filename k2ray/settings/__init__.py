"""Settings, read once at the start and passed on as values: `load_settings` reads them, `sections.py` says which."""

from k2ray.settings.load import CONFIG_VARIABLE, DEFAULT_CONFIG, load_settings
from k2ray.settings.secrets import MASK
from k2ray.settings.sections import (
    ENV_PREFIX,
    Api,
    Backfill,
    Binance,
    Catalog,
    Commit,
    ExchangeLimits,
    Exchanges,
    ExchangeSettings,
    Feed,
    Kafka,
    Lake,
    RaySettings,
    Section,
    Settings,
    Supervision,
    Tls,
    Upkeep,
)

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
    "ExchangeLimits",
    "ExchangeSettings",
    "Exchanges",
    "Feed",
    "Kafka",
    "Lake",
    "RaySettings",
    "Section",
    "Settings",
    "Supervision",
    "Tls",
    "Upkeep",
    "load_settings",
]
