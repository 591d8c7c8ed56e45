"""The proof: what the simulated exchange generated against what a table holds, id by id.

Used by `k2ray demo`, the chaos cases and the end-to-end benchmark. Counts alone prove nothing, so every row is matched
by (symbol, numbering, id); what was generated before the first stored row of a numbering is left out: nobody listened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
from pyiceberg.manifest import ManifestContent
from pyiceberg.table import Table

from k2ray.lake.durable import local_path

_SPACE_OF = {"trade": "", "aggTrade": "agg", "bookTicker": ""}
# Rows that a fault made unreadable or left out never reached a client as such.
_NEVER_ARRIVED = ("malformed", "truncated", "oversized", "id_gap")

_STORED = """
CREATE TEMP TABLE stored AS
SELECT symbol, sequence_space AS space, source_sequence AS id, count(*) AS copies
FROM read_parquet($files) WHERE sequence_space = $base OR starts_with(sequence_space, $base || '#')
GROUP BY ALL
"""
_SENT = """
CREATE TEMP TABLE sent AS
SELECT DISTINCT symbol::VARCHAR AS symbol, id,
       $base || CASE WHEN epoch = 0 THEN '' ELSE '#' || (epoch + 1) END AS space,
       coalesce(fault IN (SELECT unnest($unreadable)), false) OR event_us < $since_us AS left_out
FROM read_parquet($truth) WHERE channel::VARCHAR = $channel
"""
_COMPARE = """
WITH heard AS (SELECT symbol, space, min(id) AS first_id FROM stored GROUP BY ALL),
wanted AS (
    SELECT sent.* FROM sent LEFT JOIN heard USING (symbol, space)
    WHERE NOT left_out AND (heard.first_id IS NULL OR sent.id >= heard.first_id)
)
SELECT (SELECT count(*) FROM wanted),
       (SELECT coalesce(sum(copies), 0)::BIGINT FROM stored),
       (SELECT count(*) FROM wanted ANTI JOIN stored USING (symbol, space, id)),
       (SELECT coalesce(sum(copies - 1), 0)::BIGINT FROM stored),
       (SELECT count(*) FROM stored ANTI JOIN sent USING (symbol, space, id))
"""


@dataclass(frozen=True)
class Audit:
    """What came of the rows of one channel.

    Attributes:
        channel: `trade`, `aggTrade` or `bookTicker`.
        sent: Rows that the exchange generated since the first stored one of each numbering.
        stored: Rows in the table.
        lost: Sent, and not in the table.
        duplicated: In the table more than once.
        invented: In the table, and never generated.
    """

    channel: str
    sent: int
    stored: int
    lost: int
    duplicated: int
    invented: int

    @property
    def exact(self) -> bool:
        """Whether the table equals what was sent."""
        return not (self.lost or self.duplicated or self.invented)


def audit(truth: Path, table: Table, channel: str, since_us: int = 0) -> Audit:
    """Compare the truth with the table's newest snapshot.

    Args:
        truth: The simulator's Parquet file (`truth.py` has its columns).
        table: The table that the channel's rows go to.
        channel: `trade`, `aggTrade` or `bookTicker`.
        since_us: What happened before is not asked for.
    """
    files = list(data_files(table))
    base = _SPACE_OF[channel]
    with duckdb.connect() as connection:
        if files:
            connection.execute(_STORED, {"files": files, "base": base})
        else:
            connection.execute("CREATE TEMP TABLE stored (symbol VARCHAR, space VARCHAR, id BIGINT, copies BIGINT)")
        connection.execute(
            _SENT,
            {
                "truth": str(truth),
                "channel": channel,
                "base": base,
                "unreadable": list(_NEVER_ARRIVED),
                "since_us": since_us,
            },
        )
        row = connection.execute(_COMPARE).fetchone()
    assert row is not None
    return Audit(channel, *row)


def seconds_sent(truth: Path) -> frozenset[int]:
    """Return the unix seconds in which trades happened: a machine that stalls stalls the exchange, too."""
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT DISTINCT trade_us // 1000000 FROM read_parquet($truth) WHERE trade_us IS NOT NULL",
            {"truth": str(truth)},
        ).fetchall()
    return frozenset(second for (second,) in rows)


def data_files(table: Table) -> dict[str, int]:
    """Return local path -> id of the snapshot that added it, of the newest snapshot's data files."""
    snapshot = table.current_snapshot()
    if snapshot is None:
        return {}
    return {
        local_path(entry.data_file.file_path) or entry.data_file.file_path: entry.snapshot_id or 0
        for manifest in snapshot.manifests(table.io)
        if manifest.content == ManifestContent.DATA
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
    }


def freshness_s(table: Table, quantiles: Sequence[float] = (0.5, 0.99)) -> list[float] | None:
    """Return quantiles of seconds from a row's event time to the snapshot that made it visible.

    Only snapshots that are still retained count; None if there is no such row.
    """
    committed_ms = {snapshot.snapshot_id: snapshot.timestamp_ms for snapshot in table.metadata.snapshots}
    files = [
        (path, committed_ms[snapshot_id] * 1_000)
        for path, snapshot_id in data_files(table).items()
        if snapshot_id in committed_ms
    ]
    if not files:
        return None
    with duckdb.connect() as connection:
        connection.execute("CREATE TEMP TABLE added (filename VARCHAR, committed_us BIGINT)")
        connection.executemany("INSERT INTO added VALUES (?, ?)", files)
        row = connection.execute(
            "SELECT quantile_cont((committed_us - epoch_us(timestamp)) / 1e6, $quantiles)"
            " FROM read_parquet($files, filename = true) JOIN added USING (filename)",
            {"quantiles": list(quantiles), "files": [path for path, _ in files]},
        ).fetchone()
    return list(row[0]) if row and row[0] else None
