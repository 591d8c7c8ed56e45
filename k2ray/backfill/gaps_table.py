"""The `gaps` table: what was found missing, when, and what became of it; events of `history.py`, once each.

A commit holds the new events, the state that they led to (in the place of a writer's ledger file), and how many events
there are so far (in the place of offsets). It is fenced like a writer's commit: it lands only on the very state that
the events were derived from. So a crash at any point, or a second one at work, doubles no event and loses none: who is
refused reloads the state and looks at the ledger again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import msgspec
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import TableAlreadyExistsError
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.typedef import Record
from pyiceberg.types import LongType, NestedField, StringType, TimestamptzType

from k2ray.backfill.history import GapEvent, History, MissingPiece
from k2ray.errors import CatalogUnavailable, OperatorNeeded
from k2ray.lake.catalog import ensure_table, load_table, table_identifier
from k2ray.lake.commit import Append, commit_append, no_faults
from k2ray.lake.durable import AWAY
from k2ray.lake.progress import Offset, committed_progress
from k2ray.lake.schema import PROPERTIES, partition_spec, sort_order
from k2ray.lake.stage import DAY_US, Origin, file_location, ledger_location, write_file
from k2ray.model import TIMESTAMP
from k2ray.settings import Settings

GAPS = "gaps"
POSITION = ("k2ray.gaps", 0)
"""In the progress key: the events stored so far."""

_TEXT, _ID = StringType(), LongType()
SCHEMA = Schema(
    NestedField(1, "event_id", _TEXT, required=True),
    NestedField(2, "exchange", _TEXT, required=True),
    NestedField(3, "symbol", _TEXT, required=True),
    NestedField(4, "timestamp", TimestamptzType(), required=True),
    NestedField(5, "table", _TEXT, required=True),
    NestedField(6, "sequence_space", _TEXT, required=True),
    NestedField(7, "first_id", _ID, required=True),
    NestedField(8, "last_id", _ID, required=True),
    NestedField(9, "missing", _ID, required=True),
    NestedField(10, "state", _TEXT, required=True),
    NestedField(11, "opened_at", TimestamptzType(), required=True),
    NestedField(12, "closed_at", TimestamptzType()),
    NestedField(13, "reason", _TEXT, required=True),
    NestedField(14, "snapshot_id", _ID, required=True),
)


class _Stored(msgspec.Struct, array_like=True):
    key: tuple[str, str, str, str]
    pieces: list[tuple[int, int, int, bool]]


_stored = msgspec.json.Decoder(list[_Stored])


class GapsTable:
    """The gaps table and its newest state. Blocking; one thread at a time.

    Args:
        catalog: Opened with `open_catalog`.
        settings: Names the namespace.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._settings = settings
        self._table: Table | None = None
        self._history: History | None = None
        self._events = 0

    def history(self) -> History:
        """Return the state that the next events must follow from; read anew after `forget`.

        Raises:
            CatalogUnavailable: The catalog or the storage does not answer; call again after a pause.
        """
        if self._history is None:
            table = self._open()
            progress = committed_progress(table.metadata)
            if progress is None:
                raise OperatorNeeded("gaps: lost its progress key while it was opened")
            self._events = progress.offset(POSITION).next
            self._history = _read_history(table, progress.ledger)
        return self._history

    def append(self, events: Sequence[GapEvent], after: History) -> None:
        """Store events and the state that they led to.

        Args:
            events: What happened since `history()`, to one exchange's gaps, found at one time.
            after: The new state.

        Raises:
            WorldMoved: Somebody else stored events: `forget`, look again.
            CatalogUnavailable: The catalog is away and the outcome unknown: `forget`, look again; what landed is then
                part of the state.
        """
        self.history()
        table = self._open()
        start, end = self._events, self._events + len(events)
        ledger = ledger_location(table)
        try:
            with table.io.new_output(ledger).create() as stream:
                stream.write(_dump_history(after))
            columns = {field.name: field for field in schema_to_pyarrow(table.schema(), include_field_ids=True)}
            day, exchange = events[0].at_us // DAY_US, events[0].key[1]
            location = file_location(table, day, exchange, Origin(GAPS, 0, start, end).file_name())
            file = write_file(table, columns, [rows_of(events)], location, Record(day, exchange), no_faults)
        except AWAY as error:
            raise CatalogUnavailable(f"gaps: cannot stage: {error}") from error
        append = Append((file,), {POSITION: Offset(start)}, {POSITION: Offset(end)}, ledger, None, {POSITION[0]: GAPS})
        commit_append(table, append)
        self._events, self._history = end, after

    def forget(self) -> None:
        """Read the state anew at the next call."""
        self._history = None
        self._table = None

    def _open(self) -> Table:
        if self._table is None:
            if load_table(self._catalog, self._settings, GAPS) is None:
                _create(self._catalog, self._settings)
            self._table = ensure_table(self._catalog, self._settings, GAPS)
        return self._table


def rows_of(events: Sequence[GapEvent]) -> pa.Table:
    """Return events as rows of the table."""
    return pa.table(
        {
            "event_id": pa.array([event.event_id for event in events], pa.string()),
            "exchange": pa.array([event.key[1] for event in events], pa.string()),
            "symbol": pa.array([event.key[2] for event in events], pa.string()),
            "timestamp": pa.array([event.at_us for event in events], pa.int64()).cast(TIMESTAMP),
            "table": pa.array([event.key[0] for event in events], pa.string()),
            "sequence_space": pa.array([event.key[3] for event in events], pa.string()),
            "first_id": pa.array([event.first for event in events], pa.int64()),
            "last_id": pa.array([event.last for event in events], pa.int64()),
            "missing": pa.array([event.last - event.first + 1 for event in events], pa.int64()),
            "state": pa.array([event.state for event in events], pa.string()),
            "opened_at": pa.array([event.opened_us for event in events], pa.int64()).cast(TIMESTAMP),
            "closed_at": pa.array([event.closed_us for event in events], pa.int64()).cast(TIMESTAMP),
            "reason": pa.array([event.reason for event in events], pa.string()),
            "snapshot_id": pa.array([event.snapshot_id for event in events], pa.int64()),
        }
    )


def _create(catalog: Catalog, settings: Settings) -> None:
    kept = str(settings.lake.upkeep.metadata_versions_kept)
    properties = {**PROPERTIES, "write.metadata.previous-versions-max": kept}
    try:
        with contextlib.suppress(TableAlreadyExistsError):
            catalog.create_table(
                table_identifier(settings, GAPS),
                schema=SCHEMA,
                partition_spec=partition_spec(SCHEMA),
                sort_order=sort_order(SCHEMA),
                properties=properties,
            )
    except AWAY as error:
        raise CatalogUnavailable(f"cannot create {GAPS}: {error}") from error


def _read_history(table: Table, location: str | None) -> History:
    if location is None:
        return {}
    try:
        with table.io.new_input(location).open() as stream:
            content = stream.read()
        return {item.key: tuple(MissingPiece(*piece) for piece in item.pieces) for item in _stored.decode(content)}
    except FileNotFoundError as error:
        raise OperatorNeeded(f"gaps: the state file {location} is gone") from error
    except msgspec.DecodeError as error:
        raise OperatorNeeded(f"gaps: the state file {location} cannot be read: {error}") from error
    except AWAY as error:
        raise CatalogUnavailable(f"cannot read {location}: {error}") from error


def _dump_history(history: History) -> bytes:
    return msgspec.json.encode(
        [
            _Stored(key, [(piece.first, piece.last, piece.opened_us, piece.lost) for piece in pieces])
            for key, pieces in sorted(history.items())
        ]
    )
