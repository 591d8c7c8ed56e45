"""How a selection becomes SQL over a slice's files: conditions with bound values, the source, total order, one fetch.

Values are bound, never put into SQL text; only names from the table's own schema and keywords of ours are. Columns are
mapped by name; when columns get renamed, `source_sql` is the place for DuckDB's `schema` option, which maps by field id
(every file carries them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from k2ray.errors import OperatorNeeded
from k2ray.query.database import Database, literal_path
from k2ray.query.files import Pinned
from k2ray.query.plan import Slice
from k2ray.query.request import Selection

NO_SEQUENCE = -(2**63)


def source_sql() -> str:
    """Return the FROM clause over a slice's files, bound as `$files`.

    Hive partitioning is off: folders are named `exchange=...`, and the files' own column counts.
    """
    return "read_parquet($files, hive_partitioning = false)"


def fetch_source(
    database: Database, pinned: Pinned, statement: str, values: Mapping[str, Any], part: Slice
) -> pa.Table:
    """Run a statement over one slice.

    Raises:
        OperatorNeeded: The table has delete files, which need a reader that applies them.
    """
    return database.fetch(statement, {**values, "files": _files(pinned, part)})


def fold_source(
    database: Database,
    pinned: Pinned,
    statement: str,
    values: Mapping[str, Any],
    part: Slice,
    take: Callable[[pa.RecordBatch], None],
) -> None:
    """Run a statement over one slice and hand over its rows batch by batch.

    Raises:
        OperatorNeeded: The table has delete files, which need a reader that applies them.
    """
    database.fold(statement, {**values, "files": _files(pinned, part)}, take)


def _files(pinned: Pinned, part: Slice) -> list[str]:
    if pinned.has_deletes:
        raise OperatorNeeded("the table has delete files, which queries do not apply yet: rewrite its data files first")
    return [literal_path(path) for path in part.paths]


def sequence_sql() -> str:
    """Return SQL of a row's place within its microsecond: rows without a sequence come before all others."""
    return f"coalesce(source_sequence, {NO_SEQUENCE})"


def where_sql(selection: Selection, part: Slice) -> tuple[list[str], dict[str, Any]]:
    """Return the conditions of a selection within a slice, and the values bound to them."""
    conditions: list[str] = []
    values: dict[str, Any] = {}
    starts = [one for one in (selection.start_us, part.start_us) if one is not None]
    ends = [one for one in (selection.end_us, part.end_us) if one is not None]
    if starts:
        conditions.append("timestamp >= make_timestamptz($start_us)")
        values["start_us"] = max(starts)
    if ends:
        conditions.append("timestamp < make_timestamptz($end_us)")
        values["end_us"] = min(ends)
    if selection.exchange is not None:
        conditions.append("exchange = $exchange")
        values["exchange"] = selection.exchange
    if selection.symbols:
        names = [f"symbol_{place}" for place in range(len(selection.symbols))]
        conditions.append(f"symbol IN ({', '.join('$' + name for name in names)})")
        values.update(zip(names, selection.symbols, strict=True))
    # What a slice's files say of themselves need not be asked of each row.
    is_known = part.space is not None and part.space.partition("#")[0] == selection.space
    if selection.space is not None and not is_known:
        conditions.append("(sequence_space = $space OR starts_with(sequence_space, $restarted))")
        values["space"] = selection.space
        values["restarted"] = f"{selection.space}#"
    return conditions, values
