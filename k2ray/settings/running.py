"""What the system runs on: trust, Ray, supervision, memory, deployments, HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from k2ray.settings.section import Port, PositiveFloat, PositiveInt, Section


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


class Supervision(Section):
    """When the supervisor acts."""

    interval_s: PositiveFloat = Field(0.25, description="Seconds between two looks at the actors.")
    health_interval_s: PositiveFloat = Field(1, description="Seconds between health questions to an actor.")
    health_timeout_s: PositiveFloat = Field(10, description="An actor silent for this long is killed.")
    start_timeout_s: PositiveFloat = Field(
        60, description="An actor not up by then is killed; the next one has twice the time."
    )
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


class ReplicaMemoryLimits(MemoryLimits):
    """What a replica of the API may take: what DuckDB may (`api.memory_bytes`), and its answers on top."""

    soft_bytes: PositiveInt = Field(
        2_500_000_000, description="Resident memory above this: an alert; Serve replaces no replica make before break."
    )
    hard_bytes: PositiveInt = Field(
        3_500_000_000, description="Resident memory above this for 6 s: answers what it was asked, ends, is replaced."
    )


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
    api: ReplicaMemoryLimits = Field(default_factory=ReplicaMemoryLimits, description="Of a replica of the API.")


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
    cursor_lease_s: Annotated[float, Field(ge=1, le=3600)] = Field(
        300, description="A cursor's snapshot is kept at least this long after each of its pages."
    )
