"""Ask what an exchange says about its symbols, within the budget: currencies, and which of them it knows at all."""

from __future__ import annotations

from collections.abc import Sequence

from k2ray.backfill.fetch import RestReader
from k2ray.errors import BadFrame
from k2ray.exchanges.base import ExchangeAdapter, Instrument, RestQuestion
from k2ray.logs import get_logger

WEIGHT = 20
"""Of Binance's exchangeInfo, whatever it is asked about."""

_log = get_logger(__name__)


async def ask_about(reader: RestReader, adapter: ExchangeAdapter, symbols: Sequence[str]) -> dict[str, Instrument]:
    """Return what the exchange says; symbols that it does not know are left out.

    Raises:
        ExchangeUnavailable: It does not answer; ask again with backoff.
    """
    known: dict[str, Instrument] = {}
    for path in adapter.instrument_paths(symbols):
        try:
            known |= adapter.parse_instruments(await reader.ask(RestQuestion(path, {}, WEIGHT, tuple(symbols))))
        except BadFrame as error:
            if len(symbols) == 1:
                _log.warning("symbol_unknown_to_exchange", symbol=symbols[0], reason=str(error))
                return {}
            # One unknown symbol refuses the whole request.
            return {
                name: found
                for symbol in symbols
                for name, found in (await ask_about(reader, adapter, [symbol])).items()
            }
    return known
