"""One file an exchange; `adapter` finds it by the name that settings, topics and rows use."""

from __future__ import annotations

from k2ray.errors import SettingsError
from k2ray.exchanges.base import ExchangeAdapter, RestAdapter
from k2ray.exchanges.binance import Binance
from k2ray.exchanges.binance_rest import BinanceRest


def adapter(exchange: str) -> ExchangeAdapter:
    """Return the adapter of an exchange.

    Raises:
        SettingsError: No adapter has that name; the start stops.
    """
    if exchange == Binance.name:
        return Binance()
    raise SettingsError(f"exchanges.{exchange}: no adapter of this name")


def rest_adapter(exchange: str) -> RestAdapter:
    """Return how past rows of an exchange are fetched.

    Raises:
        SettingsError: No adapter has that name; the start stops.
    """
    if exchange == BinanceRest.name:
        return BinanceRest()
    raise SettingsError(f"exchanges.{exchange}: no REST adapter of this name")
