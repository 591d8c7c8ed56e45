"""Ids in a table against those that a simulated exchange generated, whatever numbering the ledger put them in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
from pyiceberg.table import Table

from k2ray.sim.audit import data_files

_FIRST_TEN_DIGIT = 1_000_000_000


@dataclass(frozen=True)
class Compared:
    """Counts of ids: missing from the table, stored more than once, stored and never sent."""

    stored: int
    missing: int
    doubled: int
    invented: int


def compare_ids(truth: Path, table: Table, stream: str, *, to_the_end: bool = True) -> Compared:
    """Compare by (symbol, id); also those that a fault altered on their way must be there.

    What was sent before anybody listened is left out. Restarted ids begin at 1, all others have ten digits.

    Args:
        truth: The simulator's file.
        table: Its newest snapshot counts.
        stream: `trade` or `bookTicker`.
        to_the_end: Whether all of the truth must be there; otherwise up to the last stored id of each symbol.
    """
    with duckdb.connect() as connection:
        row = connection.execute(
            """WITH stored AS (SELECT symbol, source_sequence AS id FROM read_parquet($files)),
            sent AS (
                SELECT DISTINCT symbol::VARCHAR AS symbol, id FROM read_parquet($truth)
                WHERE channel::VARCHAR = $stream
            ),
            heard AS (
                SELECT symbol, min(id) FILTER (id > $ten_digits) AS low, max(id) AS high FROM stored GROUP BY ALL
            ),
            wanted AS (
                SELECT sent.* FROM sent JOIN heard USING (symbol)
                WHERE (id >= low OR id < $ten_digits) AND ($to_the_end OR id <= high)
            )
            SELECT (SELECT count(*) FROM stored),
                (SELECT count(*) FROM wanted ANTI JOIN stored USING (symbol, id)),
                (SELECT count(*) - count(DISTINCT (symbol, id)) FROM stored),
                (SELECT count(*) FROM stored ANTI JOIN sent USING (symbol, id))""",
            {
                "truth": str(truth),
                "files": list(data_files(table)),
                "stream": stream,
                "ten_digits": _FIRST_TEN_DIGIT,
                "to_the_end": to_the_end,
            },
        ).fetchone()
    assert row is not None
    return Compared(*map(int, row))
