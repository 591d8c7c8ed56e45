"""What is recorded and how: exchanges, feeds, backfill."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from k2ray.model import CHANNELS
from k2ray.settings.section import PositiveFloat, PositiveInt, Section


class ExchangeLimits(Section):
    """What the exchange lets one address do; lower where other programs share the address."""

    connects: Annotated[int, Field(ge=5)] = Field(300, description="WebSocket connects within connects_window_s.")
    connects_window_s: PositiveFloat = Field(300, description="The window that connects are counted in.")
    weight: Annotated[int, Field(ge=50)] = Field(6000, description="Weight of REST requests within weight_window_s.")
    weight_window_s: PositiveFloat = Field(60, description="The window that weight is counted in.")
    messages_per_s: Annotated[int, Field(ge=2)] = Field(
        5, description="Messages a second on each connection: so the exchange counts them."
    )


class ExchangeSettings(Section):
    """One exchange: where it is and what to record of it."""

    ws_url: str = Field(description="WebSocket base URL, wss:// only.")
    rest_url: str = Field(description="REST base URL, https:// only.")
    channels: tuple[Literal["trades", "agg_trades", "quotes"], ...] = Field(
        ("trades", "quotes"), min_length=1, description="What to record: trades, agg_trades, quotes."
    )
    symbols: tuple[str, ...] = Field(
        ("BTCUSDT", "ETHUSDT", "BNBUSDT"), min_length=1, description="The exchange's own symbols, upper case."
    )
    connections: Annotated[int, Field(ge=1)] = Field(
        1, description="Feed i owns the partitions p with p mod connections = i; at most kafka.partitions."
    )
    redundancy: Annotated[int, Field(ge=1, le=2)] = Field(
        1, description="2: each feed twice, on different nodes where there are any; losing one loses nothing."
    )
    limits: ExchangeLimits = Field(default_factory=ExchangeLimits, description="What the exchange allows.")

    @field_validator("ws_url")
    @classmethod
    def _ws_is_tls(cls, value: str) -> str:
        if urlsplit(value).scheme != "wss" or not urlsplit(value).hostname:
            raise ValueError(f"must be a wss:// URL, got {value!r}: connections are always verified TLS")
        return value.rstrip("/")

    @field_validator("rest_url")
    @classmethod
    def _rest_is_tls(cls, value: str) -> str:
        if urlsplit(value).scheme != "https" or not urlsplit(value).hostname:
            raise ValueError(f"must be an https:// URL, got {value!r}: connections are always verified TLS")
        return value.rstrip("/")

    @field_validator("channels", "symbols")
    @classmethod
    def _no_repeats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({item for item in value if value.count(item) > 1})
        if repeated:
            raise ValueError(f"names {', '.join(repeated)} more than once")
        return value

    @field_validator("symbols")
    @classmethod
    def _plain_symbols(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for symbol in value:
            if not symbol or symbol != symbol.upper() or not symbol.isprintable() or " " in symbol:
                raise ValueError(f"{symbol!r} is not an upper-case symbol")
        return value


class Binance(ExchangeSettings):
    """Binance Spot."""

    ws_url: str = Field("wss://stream.binance.com:9443", description="WebSocket base URL, wss:// only.")
    rest_url: str = Field("https://api.binance.com", description="REST base URL, https:// only.")


class Exchanges(Section):
    """The exchanges to record; null leaves one out."""

    binance: Binance | None = Field(default_factory=Binance, description="Binance Spot.")

    def enabled(self) -> dict[str, ExchangeSettings]:
        """Return exchange name -> settings of those that are recorded."""
        found: dict[str, ExchangeSettings] = {}
        for name in type(self).model_fields:
            exchange = getattr(self, name)
            if exchange is not None:
                found[name] = exchange
        return found

    def tables(self) -> list[str]:
        """Return the tables that the recorded channels go to, in the order in which they are named first."""
        channels = [channel for exchange in self.enabled().values() for channel in exchange.channels]
        return list(dict.fromkeys(CHANNELS[channel].table for channel in channels))


class Feed(Section):
    """How feeds read their sockets."""

    transport: Literal["websockets", "picows"] = Field(
        "websockets", description="picows is the fast one (pip install 'k2ray[picows]')."
    )
    stale_after_s: PositiveFloat = Field(30, description="Without a frame for this long: probe, then rotate.")
    ping_interval_s: Annotated[float, Field(ge=30, le=600)] = Field(180, description="Our own ping's interval.")
    pong_timeout_s: Annotated[float, Field(ge=5, le=60)] = Field(
        10, description="Without a pong for this long: rotate to a new connection."
    )
    rotate_every_s: Annotated[float, Field(ge=3600, le=86_400)] = Field(
        14_400, description="A connection this old is replaced, make before break."
    )
    rotate_jitter: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.1, description="Up to this part of rotate_every_s earlier, at random: feeds do not rotate together."
    )
    time_compression: Annotated[float, Field(ge=1)] = Field(
        1, description="Divides schedules (rotate_every_s, ping_interval_s), never timeouts; for tests and soaks."
    )
    connect_timeout_s: PositiveFloat = Field(10, description="TCP, TLS and WebSocket handshake together.")
    backoff_initial_s: PositiveFloat = Field(1, description="First reconnect delay's upper bound; doubles.")
    backoff_max_s: PositiveFloat = Field(60, description="Largest reconnect delay's upper bound.")
    max_frame_bytes: PositiveInt = Field(4_194_304, description="A larger frame closes the connection.")
    linger_s: PositiveFloat = Field(0.02, description="Frames are gathered this long under load.")
    linger_idle_s: PositiveFloat = Field(0.25, description="And this long below some 200 rows.")
    spool_max_bytes: PositiveInt = Field(
        4_294_967_296, description="Batches kept on disk per feed while Kafka is away."
    )


class Backfill(Section):
    """How gaps are closed by REST."""

    enabled: bool = Field(True, description="Fetch missing trades; false: gaps stay until somebody else fills them.")
    grace_s: Annotated[float, Field(ge=0)] = Field(
        15, description="Ids missing for this long are fetched; until then they may only be late."
    )
    interval_s: PositiveFloat = Field(5, description="Seconds between looks at the newest snapshot's ledger.")
    prove_interval_s: PositiveFloat = Field(
        60, description="Seconds between questions for the newest ids: trades missed at the end of a session show."
    )
    retry_s: PositiveFloat = Field(30, description="Pause before ids that the exchange did not answer are asked again.")
    lost_after_answers: Annotated[int, Field(ge=1)] = Field(
        3, description="Ids missing in this many answers in a row are sealed as lost."
    )
    max_gap_ids: PositiveInt = Field(50_000_000, description="A wider gap is absurd: sealed as lost, never fetched.")
    page_rows: Annotated[int, Field(ge=1, le=1000)] = Field(1000, description="Rows asked for at once.")
    concurrency: Annotated[int, Field(ge=1, le=16)] = Field(4, description="Requests under way at once.")
    weight_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Part of the exchange's request weight that backfill takes at most."
    )
