"""The sections of the settings: their keys, defaults, bounds and meanings. docs/configuration.md repeats them.

Next: `load.py` fills them from arguments, environment and file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from k2ray.model import CHANNELS
from k2ray.settings.secrets import mask

ENV_PREFIX = "K2RAY_"

Port = Annotated[int, Field(ge=1, le=65535)]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A section of the settings: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Tls(Section):
    """Whom to trust. Verification cannot be turned off; tests bring their own CA."""

    ca_file: Path | None = Field(None, description="PEM file of CAs to trust instead of the system's.")
    crl_file: Path | None = Field(
        None, description="PEM file of revocation lists, one of each CA; certificates on them are refused."
    )


class RaySettings(Section):
    """Where Ray runs."""

    address: str | None = Field(
        None,
        description="null: k2ray starts its own head below data_dir; `auto` or HOST:PORT: join one that runs.",
    )
    dashboard: bool = Field(True, description="Start the dashboard with our own head.")
    num_cpus: PositiveInt | None = Field(None, description="CPUs that our own head offers; null: the machine's.")
    object_store_bytes: Annotated[int, Field(ge=78_643_200)] = Field(
        268_435_456, description="Object store of our own head."
    )


class ExchangeLimits(Section):
    """What the exchange lets one address do; lower where other programs share the address."""

    connects: Annotated[int, Field(ge=5)] = Field(300, description="WebSocket connects within connects_window_s.")
    connects_window_s: PositiveFloat = Field(300, description="The window that connects are counted in.")
    weight: Annotated[int, Field(ge=50)] = Field(6000, description="Weight of REST requests within weight_window_s.")
    weight_window_s: PositiveFloat = Field(60, description="The window that weight is counted in.")
    messages_per_s: Annotated[int, Field(ge=2)] = Field(5, description="Messages to the exchange per connection.")


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


class Kafka(Section):
    """The log between feeds and writers."""

    bootstrap_servers: str | None = Field(
        None, description="HOST:PORT[,HOST:PORT]; null: a local Apache Kafka below data_dir."
    )
    topic_prefix: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = Field(
        "market", description="First part of every topic's name."
    )
    partitions: Annotated[int, Field(ge=1, le=1000)] = Field(
        4, description="Partitions of a new topic, chosen once: an instrument never moves."
    )
    replication_factor: PositiveInt = Field(1, description="Copies of each partition of a new topic.")
    min_insync_replicas: PositiveInt = Field(1, description="Copies that must confirm a write.")
    retention_s: PositiveInt = Field(604_800, description="How long a new topic keeps records.")
    retention_bytes: Annotated[int, Field(ge=-1)] = Field(-1, description="Per partition of a new topic; -1: no limit.")
    compression: Literal["lz4", "zstd"] = Field("lz4", description="Compression of record batches.")
    queue_max_bytes: PositiveInt = Field(
        67_108_864, description="Unconfirmed batches in memory; past that they go to the spool."
    )
    delivery_timeout_s: PositiveFloat = Field(
        10, description="A batch that Kafka has not confirmed by then goes to the spool."
    )
    heap_bytes: PositiveInt = Field(268_435_456, description="Java heap of the local broker.")
    options: dict[str, str] = Field(
        default_factory=dict, description="More librdkafka options, for example security.protocol."
    )


class Wire(Section):
    """How rows look in Kafka."""

    codec: Literal["arrow", "avro"] = Field(
        "arrow", description="arrow: a record holds a batch; avro: one record a trade, for readers without Arrow."
    )
    registry_url: str | None = Field(
        None, description="A registry with Confluent's REST API; null: the built-in one, a compacted topic."
    )
    registry_user: str | None = Field(None, description="For HTTP basic authentication at the registry.")
    registry_password: str | None = Field(None, description="The user's password, or with no user a bearer token.")
    registry_timeout_s: PositiveFloat = Field(5, description="Longest wait for an answer of the registry.")
    compatibility: Literal["BACKWARD", "BACKWARD_TRANSITIVE"] = Field(
        "BACKWARD", description="A new schema reads what the newest one wrote, or what any of them wrote."
    )
    cache_size: Annotated[int, Field(ge=1, le=100)] = Field(10, description="Schemas that each process keeps.")

    @field_validator("registry_url")
    @classmethod
    def _registry_is_http(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError("must be an http:// or https:// URL without a user (registry_user, registry_password)")
        return value.rstrip("/")


class Commit(Section):
    """A commit happens at whichever limit is reached first."""

    interval_s: PositiveFloat = Field(5, description="Seconds between commits.")
    max_rows: PositiveInt = Field(500_000, description="Rows in one commit.")
    max_bytes: PositiveInt = Field(67_108_864, description="Arrow bytes staged for one commit.")


class Catalog(BaseModel):
    """The Iceberg catalog; other keys go to pyiceberg as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field("sql", description="pyiceberg's catalog type: sql, rest, ...")
    uri: str | None = Field(None, description="null: SQLite below data_dir; or postgresql+psycopg://...")


class Upkeep(Section):
    """How tables are kept small while they grow."""

    interval_s: PositiveFloat = Field(30, description="Seconds between looks at a table.")
    snapshots_kept: Annotated[int, Field(ge=2)] = Field(100, description="Newest snapshots that stay.")
    expire_every: PositiveInt = Field(20, description="Snapshots above snapshots_kept before an expiry.")
    metadata_versions_kept: PositiveInt = Field(10, description="Old metadata.json files that stay.")
    tag_retention_s: PositiveInt = Field(
        604_800, description="How long as-of tags stay: one an hour for a day, then one every six hours."
    )
    compact: bool = Field(True, description="Whether small files of closed hours are compacted.")
    compact_target_bytes: Annotated[int, Field(ge=1_048_576)] = Field(
        134_217_728, description="Size of a compacted file; files below half of it are small."
    )
    compact_min_files: Annotated[int, Field(ge=2)] = Field(
        8, description="Small files of one closed hour before they are compacted (2 once the day is over)."
    )
    compact_settle_s: PositiveFloat = Field(
        300, description="An hour is closed this long after its end, and a file joins this long after its commit."
    )
    look_budget_s: PositiveFloat = Field(
        20, description="No new compaction begins in one look at a table after this many seconds."
    )


class Lake(Section):
    """The Iceberg lakehouse."""

    catalog: Catalog = Field(default_factory=Catalog, description="The Iceberg catalog.")
    warehouse: str | None = Field(None, description="A folder or s3://...; null: below data_dir.")
    namespace: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = Field(
        "market", description="Iceberg namespace of the tables."
    )
    commit: Commit = Field(default_factory=Commit, description="When to commit.")
    upkeep: Upkeep = Field(default_factory=Upkeep, description="Compaction, expiry, removal of orphans.")


class Supervision(Section):
    """When the supervisor acts."""

    interval_s: PositiveFloat = Field(0.25, description="Seconds between two looks at the actors.")
    health_interval_s: PositiveFloat = Field(1, description="Seconds between health questions to an actor.")
    health_timeout_s: PositiveFloat = Field(10, description="An actor silent for this long is killed.")
    start_timeout_s: PositiveFloat = Field(60, description="An actor not up by then is killed.")
    drain_timeout_s: PositiveFloat = Field(20, description="What an actor may take to drain.")
    backoff_initial_s: PositiveFloat = Field(0.2, description="First restart delay's upper bound; doubles.")
    backoff_max_s: PositiveFloat = Field(30, description="Largest restart delay's upper bound.")
    crash_loop_restarts: PositiveInt = Field(8, description="This many crashes within crash_loop_s: failed.")
    crash_loop_s: PositiveFloat = Field(120, description="The window that crashes are counted in.")
    overlap_s: Annotated[float, Field(ge=0)] = Field(
        2, description="A feed's new generation delivers beside the old one for this long before the old one stops."
    )
    replace_pause_s: PositiveFloat = Field(
        600, description="Shortest time between two replacements for memory; doubles while they do not help."
    )


_SOFT = "Resident memory above this: replaced, make before break."
_HARD = "Resident memory above this: killed and started anew."


class MemoryLimits(Section):
    """What a process of a role may take; RSS, of which about 60 MB are shared by all actors."""

    soft_bytes: PositiveInt = Field(500_000_000, description=_SOFT)
    hard_bytes: PositiveInt = Field(1_000_000_000, description=_HARD)

    @model_validator(mode="after")
    def _soft_is_below_hard(self) -> MemoryLimits:
        if self.soft_bytes >= self.hard_bytes:
            raise ValueError(f"soft_bytes ({self.soft_bytes}) must be below hard_bytes ({self.hard_bytes})")
        return self


class TableMemoryLimits(MemoryLimits):
    """What a process that holds batches of a whole table may take."""

    soft_bytes: PositiveInt = Field(1_500_000_000, description=_SOFT)
    hard_bytes: PositiveInt = Field(2_500_000_000, description=_HARD)


class Memory(Section):
    """How memory is watched, and what each role may take."""

    sample_interval_s: PositiveFloat = Field(30, description="Seconds between two samples of a process.")
    window: Annotated[int, Field(ge=3)] = Field(120, description="Samples that a trend is drawn through.")
    warmup_s: Annotated[float, Field(ge=0)] = Field(
        600, description="Samples of a process's first seconds say nothing about a leak."
    )
    leak_score: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.8, description="min(MB per hour / 50, 1) x R2 over a whole window above this: replaced."
    )
    feed: MemoryLimits = Field(default_factory=MemoryLimits, description="Of a feed.")
    backfill: MemoryLimits = Field(default_factory=MemoryLimits, description="Of the backfill.")
    writer: TableMemoryLimits = Field(default_factory=TableMemoryLimits, description="Of a writer.")
    upkeep: TableMemoryLimits = Field(default_factory=TableMemoryLimits, description="Of a table's upkeep.")
    serializer: MemoryLimits = Field(default_factory=MemoryLimits, description="Of the serializer.")
    supervisor: MemoryLimits = Field(default_factory=MemoryLimits, description="Of the supervisor: it ends itself.")


class Deploy(Section):
    """How a release takes over from another one."""

    watch_s: Annotated[float, Field(ge=0)] = Field(
        10, description="The new release must work this long after it took over, or it is taken back."
    )
    releases_kept: Annotated[int, Field(ge=2, le=100)] = Field(
        5, description="Releases (code and settings) kept below data_dir to go back to."
    )


class Api(Section):
    """The HTTP interface."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(8000, description="Port to listen on.")
    replicas: PositiveInt = Field(1, description="Replicas; with 2 or more one may die, and the others answer.")
    memory_bytes: PositiveInt = Field(1_073_741_824, description="DuckDB's memory limit per replica.")
    threads: PositiveInt = Field(2, description="DuckDB's threads per replica.")
    timeout_s: PositiveFloat = Field(60, description="Longest time that one query may run.")


class Settings(BaseSettings):
    """All settings. Construct through `load_settings`."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=ENV_PREFIX)

    data_dir: Path = Field(
        Path("./k2ray-data"),
        description="Broker, warehouse, catalog, spool, logs, tokens and pid files live below it.",
    )
    tls: Tls = Field(default_factory=Tls, description="Whom to trust.")
    ray: RaySettings = Field(default_factory=RaySettings, description="Where Ray runs.")
    exchanges: Exchanges = Field(default_factory=Exchanges, description="What to record.")
    feed: Feed = Field(default_factory=Feed, description="How feeds read their sockets.")
    backfill: Backfill = Field(default_factory=Backfill, description="How gaps are closed by REST.")
    kafka: Kafka = Field(default_factory=Kafka, description="The log.")
    wire: Wire = Field(default_factory=Wire, description="How rows look in Kafka.")
    lake: Lake = Field(default_factory=Lake, description="The lakehouse.")
    supervision: Supervision = Field(default_factory=Supervision, description="When the supervisor acts.")
    memory: Memory = Field(default_factory=Memory, description="How memory is watched.")
    deploy: Deploy = Field(default_factory=Deploy, description="How a release takes over from another one.")
    api: Api = Field(default_factory=Api, description="The HTTP interface.")

    @model_validator(mode="after")
    def _connections_fit_partitions(self) -> Settings:
        for name, exchange in self.exchanges.enabled().items():
            if exchange.connections > self.kafka.partitions:
                raise ValueError(
                    f"exchanges.{name}.connections: {exchange.connections} is more than kafka.partitions "
                    f"({self.kafka.partitions}); a feed owns whole partitions"
                )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the environment to `load_settings`, which names misspelt variables."""
        return (init_settings,)

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain values with secrets masked: the only form to print or log."""
        masked = mask(self.model_dump(mode="json"))
        assert isinstance(masked, dict)
        return masked

    def to_json(self) -> str:
        """Return all settings, secrets included, for an actor's constructor; never print it."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote, without looking at files or the environment."""
        return cls.model_validate_json(text)

    def __repr__(self) -> str:
        return f"Settings({self.describe()})"

    __str__ = __repr__
