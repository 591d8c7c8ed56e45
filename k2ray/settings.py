"""Settings: arguments, then `K2RAY_...` variables, then `k2ray.yaml`, read once at the start and passed on as values.

`load_settings` is the only reader of the environment. Unknown keys and sections are errors that name the nearest known
one. `Settings.describe()` is the only form that is printed: secrets are masked. docs/configuration.md documents every key.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from k2ray.errors import SettingsError

ENV_PREFIX = "K2RAY_"
CONFIG_VARIABLE = "K2RAY_CONFIG"
DEFAULT_CONFIG = Path("k2ray.yaml")
MASK = "********"

_SECRET_KEY = re.compile(r"password|secret|token|credential|access-key|api.?key|sasl\.", re.IGNORECASE)

Port = Annotated[int, Field(ge=1, le=65535)]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A section of the settings: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Tls(Section):
    """Whom to trust. Verification cannot be turned off; tests bring their own CA."""

    ca_file: Path | None = Field(None, description="PEM file of CAs to trust instead of the system's.")


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


class Feed(Section):
    """How feeds read their sockets."""

    transport: Literal["websockets", "picows"] = Field(
        "websockets", description="picows is the fast one (pip install 'k2ray[picows]')."
    )
    stale_after_s: PositiveFloat = Field(30, description="Without a frame for this long: probe, then reconnect.")
    ping_interval_s: PositiveFloat = Field(180, description="Our own ping's interval.")
    pong_timeout_s: PositiveFloat = Field(10, description="Without a pong for this long: reconnect.")
    connect_timeout_s: PositiveFloat = Field(10, description="TCP, TLS and WebSocket handshake together.")
    backoff_initial_s: PositiveFloat = Field(1, description="First reconnect delay's upper bound; doubles.")
    backoff_max_s: PositiveFloat = Field(60, description="Largest reconnect delay's upper bound.")
    max_frame_bytes: PositiveInt = Field(4_194_304, description="A larger frame closes the connection.")
    linger_s: PositiveFloat = Field(0.02, description="Frames are gathered this long under load.")
    linger_idle_s: PositiveFloat = Field(0.25, description="And this long below some 200 rows.")
    spool_max_bytes: PositiveInt = Field(
        4_294_967_296, description="Batches kept on disk per feed while Kafka is away."
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
    expire_every: PositiveInt = Field(50, description="Snapshots above snapshots_kept before an expiry.")
    metadata_versions_kept: PositiveInt = Field(10, description="Old metadata.json files that stay.")
    tag_retention_s: PositiveInt = Field(604_800, description="How long the hourly as-of tags stay.")


class Lake(Section):
    """The Iceberg lakehouse."""

    catalog: Catalog = Field(default_factory=Catalog, description="The Iceberg catalog.")
    warehouse: str | None = Field(None, description="A folder or s3://...; null: below data_dir.")
    namespace: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = Field(
        "market", description="Iceberg namespace of the tables."
    )
    commit: Commit = Field(default_factory=Commit, description="When to commit.")
    upkeep: Upkeep = Field(default_factory=Upkeep, description="Expiry.")


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


class Api(Section):
    """The HTTP interface."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(8000, description="Port to listen on.")
    replicas: PositiveInt = Field(1, description="Replicas; 2 or more for updates without a pause.")
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
    kafka: Kafka = Field(default_factory=Kafka, description="The log.")
    lake: Lake = Field(default_factory=Lake, description="The lakehouse.")
    supervision: Supervision = Field(default_factory=Supervision, description="When the supervisor acts.")
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
        masked = _mask(self.model_dump(mode="json"))
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


def load_settings(
    config: Path | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings: `arguments` win over the environment, which wins over the file.

    Args:
        config: The YAML file; None takes `K2RAY_CONFIG`, else ./k2ray.yaml if it exists, else defaults alone.
        arguments: Nested overrides, for example `{"api": {"port": 9000}}`.
        environ: The environment; None takes the process's.

    Raises:
        SettingsError: Something is unknown or invalid; the message names it. Stop the start.
    """
    environ = os.environ if environ is None else environ
    path, values = _read_file(config, environ)
    variables: dict[tuple[str, ...], str] = {}
    merged = _merge(values, _read_environment(environ, variables))
    merged = _merge(merged, arguments or {})
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise SettingsError(_explain(error, path, variables)) from None
    base = path.parent.resolve() if path else Path.cwd()
    return _with_absolute_paths(settings, base)


def _read_file(config: Path | None, environ: Mapping[str, str]) -> tuple[Path | None, dict[str, Any]]:
    path = config or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    if path is None:
        if not DEFAULT_CONFIG.exists():
            return None, {}
        path = DEFAULT_CONFIG
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not valid YAML: {error}") from error
    if loaded is None:
        return path, {}
    if not isinstance(loaded, dict):
        raise SettingsError(f"{path}: must hold sections (`key: value`), not a {type(loaded).__name__}")
    return path, loaded


def _read_environment(environ: Mapping[str, str], variables: dict[tuple[str, ...], str]) -> dict[str, Any]:
    """Nest `K2RAY_A__B=value`; fills `variables` with path -> the variable's name for error messages."""
    nested: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name == CONFIG_VARIABLE:
            continue
        path = tuple(part.lower() for part in name.removeprefix(ENV_PREFIX).split("__"))
        variables[path] = name
        level = nested
        for part in path[:-1]:
            level = level.setdefault(part, {})
            if not isinstance(level, dict):
                raise SettingsError(f"{name}: another variable sets its section as a whole")
        level[path[-1]] = _parse_variable(name, environ[name])
    return nested


def _parse_variable(name: str, text: str) -> Any:
    if text == "null":
        return None
    if text[:1] in {"[", "{"}:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise SettingsError(f"{name}: is not valid JSON ({error})") from None
    return text


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            merged[key] = _merge(under, value)
        else:
            merged[key] = value
    return merged


def _explain(error: ValidationError, path: Path | None, variables: Mapping[tuple[str, ...], str]) -> str:
    lines = []
    for item in error.errors():
        location = tuple(str(part) for part in item["loc"])
        variable = next((name for known, name in variables.items() if known[: len(location)] == location), None)
        where = f"{variable} (setting {'.'.join(location)})" if variable else ".".join(location)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown setting{_nearest(location)}"
        elif item["type"] == "missing":
            message = "is required"
        elif not _is_secret(location):
            message = f"{message}, got {item['input']!r}" if where and "got" not in message else message
        lines.append(f"{where}: {message}" if where else message)
    source = f" (file {path})" if path else ""
    return f"settings{source}:\n  " + "\n  ".join(lines)


def _nearest(location: tuple[str, ...]) -> str:
    model = _model_at(location[:-1])
    if model is None:
        return ""
    known = sorted(model.model_fields)
    close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"


def _model_at(location: tuple[str, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] = Settings
    for part in location:
        field = model.model_fields.get(part)
        inner = _model_of(field.annotation) if field else None
        if inner is None:
            return None
        model = inner
    return model


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in {types.UnionType, typing.Union}:
        for option in typing.get_args(annotation):
            found = _model_of(option)
            if found:
                return found
    return None


def _is_secret(location: tuple[str, ...]) -> bool:
    return any(_SECRET_KEY.search(part) for part in location) or location[-1:] == ("uri",)


def _mask(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _mask(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_mask(inner, key) for inner in value]
    if value is None:
        return None
    if _SECRET_KEY.search(key):
        return MASK
    if isinstance(value, str) and "@" in value and "://" in value:
        parts = urlsplit(value)
        if parts.password:
            user = f"{parts.username}:{MASK}@{parts.hostname}" + (f":{parts.port}" if parts.port else "")
            return urlunsplit(parts._replace(netloc=user))
    return value


def _with_absolute_paths(settings: Settings, base: Path) -> Settings:
    """Resolve relative paths against the config file's folder, whatever the working directory is later."""
    changes: dict[str, Any] = {"data_dir": (base / settings.data_dir.expanduser()).resolve()}
    if settings.tls.ca_file is not None:
        ca_file = (base / settings.tls.ca_file.expanduser()).resolve()
        changes["tls"] = settings.tls.model_copy(update={"ca_file": ca_file})
    warehouse = settings.lake.warehouse
    if warehouse is not None and "://" not in warehouse:
        absolute = str((base / Path(warehouse).expanduser()).resolve())
        changes["lake"] = settings.lake.model_copy(update={"warehouse": absolute})
    return settings.model_copy(update=changes)
