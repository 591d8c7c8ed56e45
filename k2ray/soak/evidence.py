"""What the tables themselves prove about a period, by ids: nothing twice, nothing missing between neighbours.

Every id in the period is looked at, instrument by instrument, so that memory stays bounded (DuckDB spills to disk
beyond). For trades, whose ids step by one, an id that lies between two stored ones and is not there is missing. Quotes'
ids skip: they can only prove that nothing is there twice.

A week takes long to read, and upkeep goes on meanwhile: where a file is gone, what replaced it is read.
"""

from __future__ import annotations

import datetime
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
from pyiceberg.table import Table

from k2ray.errors import BadInput, TryAgain
from k2ray.lake.durable import AWAY, local_path, unavailable

MEMORY_LIMIT = "1GB"
ATTEMPTS = 3
"""Times that one question is asked when files vanish; each has the table's newest files."""

GAPS_SHOWN = 50
POINTS = 500
"""Points of a rate curve at most."""

_IN_PERIOD = "timestamp >= make_timestamptz($since) AND timestamp < make_timestamptz($until)"
_IDS = f"""
CREATE OR REPLACE TEMP TABLE ids AS
SELECT sequence_space AS space, source_sequence AS id, count(*) AS copies
FROM read_parquet($files)
WHERE exchange = $exchange AND symbol = $symbol AND source_sequence IS NOT NULL AND {_IN_PERIOD}
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

    exchange: str
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
    rows = duplicated = missing = 0
    holes: list[Hole] = []
    with tempfile.TemporaryDirectory() as spill, duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        connection.execute(f"SET temp_directory = '{spill}'")
        period = _Period(table, connection, since_s, until_s)
        counted = period.ask(
            "SELECT epoch_us(timestamp) // 1000000 AS second, count(*) FROM read_parquet($files)"
            f" WHERE {_IN_PERIOD} GROUP BY ALL ORDER BY second"
        )
        instruments = period.ask(
            f"SELECT DISTINCT exchange, symbol FROM read_parquet($files) WHERE {_IN_PERIOD} ORDER BY ALL"
        )
        rows = sum(count for _, count in counted)
        for exchange, symbol in instruments:
            period.ask(_IDS, exchange=exchange, symbol=symbol)
            found = connection.execute("SELECT coalesce(sum(copies - 1), 0)::BIGINT FROM ids").fetchone()
            assert found is not None
            duplicated += found[0]
            if steps_by_one:
                gaps = connection.execute(_HOLES).fetchall()
                missing += sum(last - first + 1 for _, first, last in gaps)
                holes += [Hole(exchange, symbol, *gap) for gap in gaps[: GAPS_SHOWN - len(holes)]]
    return Evidence(
        table=name,
        rows=rows,
        duplicated=duplicated,
        missing=missing if steps_by_one else None,
        holes=holes,
        seconds=frozenset(second for second, _ in counted),
        rates=_rates(counted, since_s, until_s),
    )


class _Period:
    """Asks about the rows of a period, in the files that hold them now."""

    def __init__(self, table: Table, connection: duckdb.DuckDBPyConnection, since_s: float, until_s: float) -> None:
        self._table = table
        self._connection = connection
        self._since_s, self._until_s = since_s, until_s
        self._files = _files(table, since_s, until_s)

    def ask(self, question: str, **more: Any) -> list[tuple[Any, ...]]:
        """Return the answer's rows; none where there are no files.

        Raises:
            TryAgain: Files vanish or cannot be read, again and again.
        """
        since, until = round(self._since_s * 1e6), round(self._until_s * 1e6)
        failed: Exception | None = None
        for _ in range(ATTEMPTS):
            if not self._files:
                return []
            parameters = {"files": self._files, "since": since, "until": until, **more}
            try:
                return self._connection.execute(question, parameters).fetchall()
            except duckdb.IOException as error:
                failed = error
                try:
                    self._table.refresh()
                    self._files = _files(self._table, self._since_s, self._until_s)
                except AWAY as away:
                    raise unavailable("the table's newest files", away) from away
        raise TryAgain(f"the table's files cannot be read: {failed}") from failed


def _files(table: Table, since_s: float, until_s: float) -> list[str]:
    since, until = (datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat() for at in (since_s, until_s))
    scan = table.scan(row_filter=f"timestamp >= '{since}' and timestamp < '{until}'")
    found = []
    for task in scan.plan_files():
        path = local_path(task.file.file_path)
        if path is None:
            raise BadInput(f"{task.file.file_path}: only a warehouse in a local folder can be judged")
        found.append(path)
    return found


def _rates(counted: Sequence[tuple[Any, ...]], since_s: float, until_s: float) -> list[tuple[float, float]]:
    """Return (unix time, rows per second) of even parts of the period; its ragged ends do not look like a drop."""
    first = math.floor(since_s)
    width = max(1, round((until_s - since_s) / POINTS))
    buckets: dict[int, int] = {}
    for second, count in counted:
        bucket = (second - first) // width
        buckets[bucket] = buckets.get(bucket, 0) + count
    rates = []
    for number in range(max(buckets, default=-1) + 1):
        begin = first + number * width
        lasts_s = min(begin + width, until_s) - max(begin, since_s)
        if lasts_s >= width / 2:
            rates.append((max(float(begin), since_s), buckets.get(number, 0) / lasts_s))
    return rates
