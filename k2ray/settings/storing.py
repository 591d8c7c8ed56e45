"""What lies between feeds and answers: Kafka, codec, lakehouse."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from k2ray.settings.section import PositiveFloat, PositiveInt, Section


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
