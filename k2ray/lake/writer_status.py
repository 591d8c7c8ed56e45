"""What a writer tells others about itself; plain values, taken without disturbing its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepReport:
    """What one `TableWriter.step` did.

    Attributes:
        records: Records read.
        rows: New rows among them.
        duplicates: Rows that were stored or pending already.
        committed_rows: Rows whose commit landed during this step.
        snapshot_id: The snapshot of that commit; None if none landed.
    """

    records: int = 0
    rows: int = 0
    duplicates: int = 0
    committed_rows: int = 0
    snapshot_id: int | None = None


@dataclass(frozen=True)
class WriterStatus:
    """A writer's state. Counts are since this writer started.

    Attributes:
        table: Its table.
        positioned: Whether it knows where to read; False before the first step and after the world moved.
        snapshot_id: Newest snapshot that it knows.
        offsets: Committed offsets, topic -> next offset of each partition.
        rows_committed: Rows stored.
        rows_pending: Rows read and not yet stored.
        records: Records read.
        duplicates: Rows dropped since they were stored or pending already.
        dead_letters: Records, and parts of records, that could not be stored.
        commits: Commits that landed.
        commit_s: How long the newest commit took, staging included.
        last_commit_age_s: Seconds since then; None before the first.
        lag_trades: Rows in Kafka behind the read position, estimated from the records' average size.
        lag_s: Age of the newest record read while there are more behind it, else 0.
        open_gaps: Missing id ranges that may still be filled.
        ledger_events: Restarted ids, rows that fit no numbering, holes given up: what operators should know.
        freshness_p50_s: Half of the newest rows were younger than this when their commit landed.
        freshness_p99_s: And 99 % of them were younger than this.
        worlds_moved: Times that somebody else had committed and memory was dropped.
        holes: Records that retention removed before they were read.
        rewinds: Times that the log had lost its end and reading went back.
        trouble: The newest error that is being retried; None if all is well.
    """

    table: str
    positioned: bool = False
    snapshot_id: int | None = None
    offsets: Mapping[str, list[int]] = field(default_factory=dict)
    rows_committed: int = 0
    rows_pending: int = 0
    records: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    commits: int = 0
    commit_s: float | None = None
    last_commit_age_s: float | None = None
    lag_trades: int = 0
    lag_s: float = 0.0
    open_gaps: int = 0
    ledger_events: int = 0
    freshness_p50_s: float | None = None
    freshness_p99_s: float | None = None
    worlds_moved: int = 0
    holes: int = 0
    rewinds: int = 0
    trouble: str | None = None
