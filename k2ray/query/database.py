"""The DuckDB of one process, locked down, with one cursor a question.

No extensions, no file outside the warehouse, a memory limit and no spilling: a question either fits or fails by itself.

Not here: what is asked of it (`scan.py`, `engine.py`, `bars.py`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import duckdb
import pyarrow as pa

from k2ray.errors import CatalogUnavailable, K2rayError, QueryTooLarge

ROWS_PER_BATCH = 131_072


class Database:
    """The locked-down DuckDB of this process.

    Args:
        folders: The only folders that may be read.
        memory_bytes: DuckDB's memory limit; a question that needs more fails.
        threads: DuckDB's threads for all questions together.
        timeout_s: Longest time of one statement.
    """

    def __init__(self, folders: list[str], memory_bytes: int, threads: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._connection = duckdb.connect(
            config={
                "threads": threads,
                "memory_limit": f"{memory_bytes // 1024} KiB",
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,
            }
        )
        for statement in (
            "SET GLOBAL TimeZone = 'UTC'",
            "SET GLOBAL parquet_metadata_cache = true",
            "SET GLOBAL temp_directory = ''",
        ):
            self._connection.execute(statement)
        # A path is checked as it was given and, once its pattern is expanded, as it is.
        allowed = list(dict.fromkeys([*folders, *map(literal_path, folders)]))
        self._connection.execute("SET allowed_directories = $folders", {"folders": allowed})
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def fetch(self, statement: str, values: Mapping[str, Any], **tables: pa.Table) -> pa.Table:
        """Run one statement on a cursor of its own and return all its rows.

        Args:
            statement: SQL with `$name` placeholders.
            values: What is bound to them.
            tables: Arrow tables that the statement may name.

        Raises:
            QueryTooLarge: It ran too long or needed too much memory; ask for less.
            OverflowError: A sum does not fit its decimal type.
            CatalogUnavailable: A data file cannot be read.
            K2rayError: The statement is wrong, which is a mistake in k2ray.
        """
        cursor = self._connection.cursor()
        with contextlib.closing(cursor), self._guarded(cursor):
            for name, table in tables.items():
                cursor.register(name, table)
            answer: pa.Table = cursor.sql(statement, params=dict(values)).to_arrow_table()
            return answer

    def fold(self, statement: str, values: Mapping[str, Any], take: Callable[[pa.RecordBatch], None]) -> None:
        """Run one statement and hand over its rows batch by batch, so that not all are in memory at once.

        Args:
            statement: SQL with `$name` placeholders.
            values: What is bound to them.
            take: Called with each batch.

        Raises:
            QueryTooLarge, OverflowError, CatalogUnavailable, K2rayError: As `fetch`.
        """
        cursor = self._connection.cursor()
        with contextlib.closing(cursor), self._guarded(cursor):
            batches = cursor.sql(statement, params=dict(values)).to_arrow_reader(ROWS_PER_BATCH)
            # Filters leave a few rows a row group: what follows is cheaper for many together.
            gathered: list[pa.RecordBatch] = []
            while (batch := self._next(batches)) is not None:
                gathered.append(batch)
                if sum(map(len, gathered)) >= ROWS_PER_BATCH:
                    take(pa.concat_batches(gathered))
                    gathered = []
            if gathered:
                take(pa.concat_batches(gathered))

    def _next(self, batches: pa.RecordBatchReader) -> pa.RecordBatch | None:
        """Return the next batch; DuckDB's errors arrive here as Arrow's, with DuckDB's text."""
        try:
            return batches.read_next_batch()
        except StopIteration:
            return None
        except (pa.ArrowException, OSError) as error:
            text = str(error)
            if text.startswith("INTERRUPT"):
                raise duckdb.InterruptException(text) from None
            if text.startswith("Out of Memory"):
                raise duckdb.OutOfMemoryException(text) from None
            raise CatalogUnavailable(f"a data file cannot be read: {text}") from error

    @contextlib.contextmanager
    def _guarded(self, cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Interrupt a cursor at its time limit and name DuckDB's errors by what to do next."""
        try:
            with _interrupting(cursor, self._timeout_s):
                yield
        except duckdb.InterruptException:
            raise QueryTooLarge(f"ran longer than {self._timeout_s:g} s; ask for less time or fewer symbols") from None
        except duckdb.OutOfMemoryException:
            raise QueryTooLarge("needs more memory than api.memory_bytes; ask for less") from None
        except duckdb.OutOfRangeException as error:
            raise OverflowError(str(error)) from error
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise CatalogUnavailable(f"a data file cannot be read: {error}") from error
        except duckdb.Error as error:
            raise K2rayError(f"DuckDB refused a statement: {error}") from error

    def close(self) -> None:
        """Let go of the memory."""
        self._connection.close()


def literal_path(path: str) -> str:
    """Return a path in which DuckDB sees no pattern."""
    if not set(path) & set("*?["):
        return path
    return "".join(f"[{character}]" if character in "*?[" else character for character in path)


@contextlib.contextmanager
def _interrupting(cursor: duckdb.DuckDBPyConnection, timeout_s: float) -> Iterator[None]:
    timer = threading.Timer(timeout_s, cursor.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
