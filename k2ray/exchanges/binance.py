"""4. Binance Spot: @trade, @aggTrade and @bookTicker frames, combined or raw, to rows in the wire's schemas.

What the columns do not hold is in `vendor_data`, so that every field of each aggTrade and bookTicker can be had back. A
key is left out when its value is the default named here:

| frame | columns | vendor_data |
|---|---|---|
| @trade | t: trade_id, source_sequence; T, p, q; m: side | M (default true) |
| @aggTrade | a: trade_id, source_sequence; T, p, q; m: side | f always; l (default f), E (T), M (true) |
| @bookTicker | u: quote_id, source_sequence; b, B, a, A | nothing is left |

m true means that the buyer was the maker, so the aggressor SOLD. A bookTicker carries no time: its timestamp is the
ingestion time. The E of a @trade (when the server sent it) is not kept: it lies between T and ingestion_timestamp.
Times are kept as instants: ms and us frames give the same row.

aggTrades that the exchange marks as duplicates (p = q = 0, f = l = -1) are no trades: they become no row and are
counted as ignored, and the next row of the symbol, if it is the next id, covers their ids too, so that they do not look
like a gap.

Not here: sockets (`feed/`), REST calls (`feed/instruments.py`), past rows by REST (`binance_rest.py`).
Next in the flow: 5, `model.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

import msgspec

from k2ray.errors import BadFrame
from k2ray.exchanges.base import Heartbeat, Instrument, SequenceRule, Subscription
from k2ray.exchanges.binance_decode import STREAMS, BinanceDecoder
from k2ray.settings import ExchangeSettings

SYMBOLS_A_REQUEST = 50

_ONE = SequenceRule("one")
_RULES = {"trades": _ONE, "agg_trades": _ONE, "quotes": SequenceRule("grows")}


class _Symbol(msgspec.Struct, gc=False):
    symbol: str
    quoteAsset: str


class _ExchangeInfo(msgspec.Struct):
    symbols: list[_Symbol]


_exchange_info = msgspec.json.Decoder(_ExchangeInfo)


class Binance:
    """Binance Spot's public streams; see the module's docstring for what becomes of each field."""

    name = "binance"
    asset_class = "crypto"
    heartbeat = Heartbeat(server_ping_s=20)
    lifetime_s: float | None = 86_400.0
    max_streams = 1024
    instruments_weight = 20
    question: bytes | None = b'{"method":"LIST_SUBSCRIPTIONS","id":1}'

    def stream_url(self, settings: ExchangeSettings, subscription: Subscription) -> str:
        """Return the combined-stream URL: the streams are in it, so nothing is sent after connecting."""
        streams = "/".join(
            quote(f"{symbol.lower()}@{STREAMS[channel]}", safe="@")
            for channel in subscription.channels
            for symbol in subscription.symbols
        )
        return f"{settings.ws_url}/stream?streams={streams}&timeUnit=MICROSECOND"

    def subscribe_messages(self, subscription: Subscription) -> list[bytes]:
        """Return nothing: the URL subscribes."""
        return []

    def decoder(self, subscription: Subscription) -> BinanceDecoder:
        """Return the decoder of a new connection."""
        return BinanceDecoder(self.name, self.asset_class, subscription)

    def sequence_rule(self, channel: str) -> SequenceRule:
        """Trade and aggregate ids step by one for each symbol; bookTicker's update ids grow and skip."""
        return _RULES[channel]

    def instrument_paths(self, symbols: Sequence[str]) -> list[str]:
        """Return exchangeInfo requests of bounded URL length."""
        paths = []
        for at in range(0, len(symbols), SYMBOLS_A_REQUEST):
            listed = msgspec.json.encode(list(symbols[at : at + SYMBOLS_A_REQUEST])).decode()
            paths.append(f"/api/v3/exchangeInfo?symbols={quote(listed, safe='')}")
        return paths

    def parse_instruments(self, body: bytes) -> dict[str, Instrument]:
        """Read an exchangeInfo answer.

        Raises:
            BadFrame: It is not the documented JSON; try again later.
        """
        try:
            info = _exchange_info.decode(body)
        except msgspec.DecodeError as error:
            raise BadFrame(f"exchangeInfo: {error}") from None
        return {item.symbol: Instrument(item.symbol, item.quoteAsset) for item in info.symbols}
