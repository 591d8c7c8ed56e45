"""All settings: the sections joined, checked against each other, and shown with their secrets masked.

The sections are in `recording.py`, `storing.py` and `running.py`; docs/configuration.md repeats their keys, defaults,
bounds and meanings. Next: `load.py` fills them from arguments, environment and file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from k2ray.settings.recording import Backfill, Exchanges, Feed
from k2ray.settings.running import Api, Deploy, Memory, RaySettings, Supervision, Tls
from k2ray.settings.secrets import mask
from k2ray.settings.storing import Kafka, Lake, Wire

ENV_PREFIX = "K2RAY_"


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

    @model_validator(mode="after")
    def _replicas_may_take_what_duckdb_may(self) -> Settings:
        if self.memory.api.hard_bytes <= self.api.memory_bytes:
            raise ValueError(
                f"memory.api.hard_bytes: {self.memory.api.hard_bytes} is no more than api.memory_bytes "
                f"({self.api.memory_bytes}), which DuckDB alone may take; a replica needs about 1 GB on top"
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
