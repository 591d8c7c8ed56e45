"""The `gaps` table: what was found missing, when, and what became of it; events of `history.py`, once each.

A commit holds the new events, the state that they led to (in the place of a writer's ledger file), and how many events
there are so far (in the place of offsets). It is fenced like a writer's commit: it lands only on the very state that
the events were derived from. So a crash at any point, or a second one at work, doubles no event and loses none: who is
refused reloads the state and looks at the ledger again.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from k2ray.backfill.history import GapEvent, History, MissingPiece
from k2ray.errors import CatalogUnavailable, OperatorNeeded
from k2ray.lake.catalog import ensure_table
from k2ray.lake.commit import Append, commit_append
from k2ray.lake.durable import AWAY, unavailable
from k2ray.lake.progress import Offset, committed_progress
from k2ray.lake.stage import Origin, ledger_location, stage
from k2ray.model import GAPS, GAPS_ROWS
from k2ray.settings import Settings

POSITION = ("k2ray.gaps", 0)
"""In the progress key: the events stored so far."""


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
            events: What happened since `history()`.
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
        except AWAY as error:
            raise unavailable("gaps: cannot stage", error) from error
        files = stage(table, GAPS, rows_of(events), Origin(GAPS, 0, start, end))
        append = Append(
            tuple(files), {POSITION: Offset(start)}, {POSITION: Offset(end)}, ledger, None, {POSITION[0]: GAPS}
        )
        commit_append(table, append)
        self._events, self._history = end, after

    def forget(self) -> None:
        """Read the state anew at the next call."""
        self._history = None
        self._table = None

    def _open(self) -> Table:
        if self._table is None:
            self._table = ensure_table(self._catalog, self._settings, GAPS)
        return self._table


def rows_of(events: Sequence[GapEvent]) -> pa.Table:
    """Return events as rows of the table."""
    columns = {
        "event_id": [event.event_id for event in events],
        "exchange": [event.key[1] for event in events],
        "symbol": [event.key[2] for event in events],
        "timestamp": [event.at_us for event in events],
        "table": [event.key[0] for event in events],
        "sequence_space": [event.key[3] for event in events],
        "first_id": [event.first for event in events],
        "last_id": [event.last for event in events],
        "missing": [event.last - event.first + 1 for event in events],
        "state": [event.state for event in events],
        "opened_at": [event.opened_us for event in events],
        "closed_at": [event.closed_us for event in events],
        "reason": [event.reason for event in events],
        "snapshot_id": [event.snapshot_id for event in events],
    }
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in GAPS_ROWS}, schema=GAPS_ROWS)


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
