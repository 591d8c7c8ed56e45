"""What the tables themselves prove about a period, by ids: nothing twice, nothing missing between neighbours.

Every id in the period is looked at, symbol by symbol, so that memory stays bounded (DuckDB spills to disk beyond). For
trades, whose ids step by one, an id that lies between two stored ones and is not there is missing. Quotes' ids skip:
they can only prove that nothing is there twice.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field

import duckdb
from pyiceberg.table import Table

from k2ray.lake.durable import local_path

MEMORY_LIMIT = "1GB"
GAPS_SHOWN = 50
POINTS = 500
"""Points of a rate curve at most."""

_IN_PERIOD = "timestamp >= make_timestamptz($since) AND timestamp < make_timestamptz($until)"
_IDS = f"""
CREATE OR REPLACE TEMP TABLE ids AS
SELECT sequence_space AS space, source_sequence AS id, count(*) AS copies
FROM read_parquet($files) WHERE symbol = $symbol AND source_sequence IS NOT NULL AND {_IN_PERIOD}
GROUP BY ALL
"""
_HOLES = """
SELECT space, id + 1 AS first_id, following - 1 AS last_id
FROM (SELECT space, id, lead(id) OVER (PARTITION BY space ORDER BY id) AS following FROM ids)
WHERE following > id + 1 ORDER BY space, first_id
"""


@dataclass(frozen=True)
class Hole:
    """Ids first_id to last_id are not in the table."""

    symbol: str
    space: str
    first_id: int
    last_id: int


@dataclass(frozen=True)
class Evidence:
    """What one table holds of a period.

    Attributes:
        table: Its name.
        rows: How many.
        duplicated: Copies beyond the first.
        missing: Ids between stored neighbours that are not there; None where ids do not step by one.
        holes: The first `GAPS_SHOWN` of them.
        seconds: Seconds (unix) with at least one row.
        rates: (unix time, rows per second) over the period.
    """

    table: str
    rows: int
    duplicated: int
    missing: int | None
    holes: list[Hole] = field(default_factory=list)
    seconds: frozenset[int] = frozenset()
    rates: list[tuple[float, float]] = field(default_factory=list)


def examine(table: Table, name: str, since_s: float, until_s: float, *, steps_by_one: bool) -> Evidence:
    """Look at every row of a period in the table's newest snapshot.

    Args:
        table: Loaded just now.
        name: What the evidence calls it.
        since_s: First unix second.
        until_s: The second after the last one.
        steps_by_one: Whether ids prove that nothing is missing.
    """
    files = _files(table, since_s, until_s)
    if not files:
        return Evidence(name, 0, 0, 0 if steps_by_one else None)
    period = {"files": files, "since": round(since_s * 1e6), "until": round(until_s * 1e6)}
    rows = duplicated = missing = 0
    holes: list[Hole] = []
    with tempfile.TemporaryDirectory() as spill, duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        connection.execute(f"SET temp_directory = '{spill}'")
        width = max(1, round((until_s - since_s) / POINTS))
        counted = connection.execute(
            "SELECT epoch_us(timestamp) // 1000000 AS second, count(*) FROM read_parquet($files)"
            f" WHERE {_IN_PERIOD} GROUP BY ALL ORDER BY second",
            period,
        ).fetchall()
        symbols = connection.execute(
            f"SELECT DISTINCT symbol FROM read_parquet($files) WHERE {_IN_PERIOD} ORDER BY symbol", period
        ).fetchall()
        rows = sum(count for _, count in counted)
        for (symbol,) in symbols:
            connection.execute(_IDS, {**period, "symbol": symbol})
            found = connection.execute("SELECT coalesce(sum(copies - 1), 0)::BIGINT FROM ids").fetchone()
            assert found is not None
            duplicated += found[0]
            if steps_by_one:
                gaps = connection.execute(_HOLES).fetchall()
                missing += sum(last - first + 1 for _, first, last in gaps)
                holes += [Hole(symbol, *gap) for gap in gaps[: GAPS_SHOWN - len(holes)]]
    return Evidence(
        table=name,
        rows=rows,
        duplicated=duplicated,
        missing=missing if steps_by_one else None,
        holes=holes,
        seconds=frozenset(second for second, _ in counted),
        rates=_rates(counted, since_s, width),
    )


def _files(table: Table, since_s: float, until_s: float) -> list[str]:
    since, until = (datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat() for at in (since_s, until_s))
    scan = table.scan(row_filter=f"timestamp >= '{since}' and timestamp < '{until}'")
    paths = [task.file.file_path for task in scan.plan_files()]
    return [local_path(path) or path for path in paths]


def _rates(counted: Sequence[tuple[int, int]], since_s: float, width: int) -> list[tuple[float, float]]:
    buckets: dict[int, int] = {}
    for second, count in counted:
        bucket = int(second - since_s) // width
        buckets[bucket] = buckets.get(bucket, 0) + count
    if not buckets:
        return []
    return [(since_s + n * width, buckets.get(n, 0) / width) for n in range(max(buckets) + 1)]
