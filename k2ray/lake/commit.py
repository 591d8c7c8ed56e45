"""11. Files, offsets and ledger become one snapshot, fenced by offset contiguity in every attempt.

The fence: an attempt goes on only if, in the very metadata that its snapshot is built on, every committed offset equals
the batch's start. The catalog's compare-and-swap on main makes sure that this metadata is still the newest when the
attempt lands. Together they make duplicates and holes impossible with any number of writers, zombies included.

Why a subclass with private names: pyiceberg checks for conflicts on retries only, so a zombie that reloads after its
rival's commit would land its rows a second time at its first attempt; and it fixes the summary before the retries, so
an older vector could be put back. `_commit()` runs on every attempt. tests/unit/lake/test_commit.py holds a contract
test for each private name; pyiceberg is pinned to 0.12.

Next in the flow: `tail/` trims what the published snapshot holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pyiceberg.exceptions import CommitFailedException, ValidationException
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update import UpdatesAndRequirements
from pyiceberg.table.update.snapshot import _MergeAppendFiles

from k2ray.errors import CatalogUnavailable, OperatorNeeded, WorldMoved
from k2ray.lake.durable import AWAY, unavailable
from k2ray.lake.progress import START, Offsets, Progress, ancestry, committed_progress, read_progress
from k2ray.logs import get_logger

log = get_logger(__name__)

Faults = Callable[[str], None]
"""Called at named points of the write path, so that chaos tests can kill, stop or raise there."""


def no_faults(point: str) -> None:
    """Go on: what production passes."""


@dataclass(frozen=True)
class Append:
    """One batch, ready to become a snapshot.

    Attributes:
        files: Staged data files; empty if only offsets move.
        start: Offsets that the batch was decided on, of every partition known then.
        end: Offsets after it; partitions that did not move may be left out.
        ledger: Location of the ledger file as of `end`. Unique to this batch: its presence in the key proves landing.
        cluster: Kafka's cluster id.
        topics: Topic name -> topic id.
        notes: More summary properties: holes and rewinds.
    """

    files: tuple[DataFile, ...]
    start: Offsets
    end: Offsets
    ledger: str | None
    cluster: str | None
    topics: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Landed:
    """A commit that is in the table.

    Attributes:
        snapshot_id: Its snapshot.
        progress: The key as committed.
        found: True if an earlier attempt had landed and was recognised, not made now.
    """

    snapshot_id: int
    progress: Progress
    found: bool


class SingleTransaction(Transaction):
    """A transaction of one producer, which never reads back what it staged.

    pyiceberg's copies the whole metadata deeply at each look, some 16 times a commit: with 150 snapshots that was
    three quarters of a commit's time.
    """

    @property
    def table_metadata(self) -> TableMetadata:
        """The metadata itself: nobody may change it."""
        return self._table.metadata


class FencedSnapshot(_MergeAppendFiles):
    """A snapshot made in attempts, which deletes nothing whatever became of them. Subclasses fence each attempt.

    Args:
        operation: What it is.
        table: Current.
        files: Added by it.
    """

    def __init__(self, operation: Operation, table: Table, files: Iterable[DataFile]) -> None:
        super().__init__(operation, SingleTransaction(table), table.io)
        for file in files:
            self.append_data_file(file)

    def _cleanup_uncommitted(self) -> None:
        """Leave files of failed attempts to the sweep: a later or late landing needs them."""

    def _clean_all_uncommitted(self) -> None:
        """Leave files to the sweep: if the commit landed after all, deleting them would destroy the table."""

    def land(self) -> None:
        """Run the attempts."""
        self.commit()
        self._transaction.commit_transaction()


class _FencedAppend(FencedSnapshot):
    """A merge append whose every attempt checks contiguity and merges offsets over what it is built on."""

    def __init__(self, table: Table, append: Append, faults: Faults) -> None:
        self._append = append
        self._faults = faults
        super().__init__(Operation.APPEND, table, append.files)

    def _commit(self) -> UpdatesAndRequirements:
        metadata = self._transaction.table_metadata
        progress = check_contiguity(metadata, self._append)
        for location in (*(file.file_path for file in self._append.files), self._append.ledger):
            # An operator's rollback can make an abandoned batch contiguous again, after upkeep removed its files.
            if location is not None and not self._io.new_input(location).exists():
                raise WorldMoved(f"{location} is gone: the batch was given up and cleaned away")
        self.snapshot_properties = {**progress.to_summary(), **self._append.notes}
        result = super()._commit()
        self._faults("inside_commit")
        return result


class _Genesis(_FencedAppend):
    """The first snapshot: no rows, all offsets at their start; every attempt checks that it is still the first."""

    def __init__(self, table: Table, progress: Progress, faults: Faults) -> None:
        super().__init__(table, Append((), {}, {}, None, None, {}), faults)
        self._progress = progress

    def _commit(self) -> UpdatesAndRequirements:
        if self._transaction.table_metadata.snapshots:
            raise CommitFailedException("the table has a snapshot by now")
        self.snapshot_properties = self._progress.to_summary()
        self._faults("genesis")
        return super(_FencedAppend, self)._commit()


def check_contiguity(metadata: TableMetadata, append: Append) -> Progress:
    """Return the key that the append would commit on top of `metadata`.

    Raises:
        WorldMoved: Some committed offset is not the append's start. Nothing was written.
        OperatorNeeded: The table has rows, or had, and no key: going on would guess.
    """
    committed = committed_progress(metadata)
    if committed is None:
        raise OperatorNeeded("no snapshot of the table carries a progress key: where to go on is unknown")
    for key in {*committed.offsets, *append.start, *append.end}:
        found, start = committed.offset(key).next, append.start.get(key, START).next
        if found != start:
            raise WorldMoved(f"{key[0]}[{key[1]}]: committed is {found}, the batch starts at {start}")
    return Progress(
        offsets=committed.advanced(append.end),
        ledger=append.ledger,
        cluster=append.cluster or committed.cluster,
        topics={**committed.topics, **append.topics},
    )


def commit_append(table: Table, append: Append, *, look_first: bool = False, faults: Faults = no_faults) -> Landed:
    """Make the append one snapshot of the table. `table` is reloaded as needed and is current afterwards.

    1. If an earlier call ended in an unknown outcome (`look_first`), reload and look before anything else.
    2. Attempt, with pyiceberg's retries; every attempt runs the fence.
    3. After any exception reload and look: the key naming our ledger file, or our snapshot, means that it landed.

    Raises:
        WorldMoved: Somebody else committed. Drop memory, position anew.
        CatalogUnavailable: The catalog or storage is away; whether it landed is unknown. Call again with `look_first`.
        OperatorNeeded: The table has no progress key.
    """
    if look_first:
        found = _look(table, append)
        if found:
            return found
    faults("head_read")
    try:
        attempt = _FencedAppend(table, append, faults)
        attempt.land()
    except (WorldMoved, CommitFailedException, ValidationException, *AWAY) as error:
        # Validation: it slept so long that the snapshot which it began on has expired; the next call meets the fence.
        log.warning("a commit did not go through, looking whether it landed", table=table.name(), error=repr(error))
        found = _look(table, append)
        if found:
            return found
        if isinstance(error, WorldMoved):
            raise
        raise unavailable(f"{table.name()}: the commit did not land", error) from error
    progress = committed_progress(table.metadata)
    if progress is None:
        raise OperatorNeeded(f"{table.name()}: the commit landed without its progress key")
    return Landed(attempt.snapshot_id, progress, found=False)


def commit_genesis(table: Table, progress: Progress, faults: Faults = no_faults) -> None:
    """Give a table without any snapshot its empty first one, which carries the key.

    A rival's genesis counts as ours: both say the same.

    Raises:
        OperatorNeeded: The table has snapshots and none carries a key.
        CatalogUnavailable: The catalog or storage is away; call again.
    """
    try:
        table.refresh()
        if committed_progress(table.metadata) is not None:
            return
        if table.metadata.snapshots:
            raise OperatorNeeded(
                f"{table.name()}: has {len(table.metadata.snapshots)} snapshots and no progress key: "
                "what is stored is unknown, so writing could lose or double rows"
            )
        faults("before_genesis")
        _Genesis(table, progress, faults).land()
    except CommitFailedException as error:
        raise CatalogUnavailable(f"{table.name()}: genesis lost its race: {error}") from error
    except AWAY as error:
        raise unavailable(f"{table.name()}: genesis", error) from error


def _look(table: Table, append: Append) -> Landed | None:
    """Reload and look for the append's own ledger file in the keys at and below the head."""
    try:
        table.refresh()
    except AWAY as error:
        raise unavailable(f"{table.name()}: cannot look whether the commit landed", error) from error
    for snapshot in ancestry(table.metadata):
        progress = read_progress(snapshot)
        if progress is not None and progress.ledger == append.ledger:
            return Landed(snapshot.snapshot_id, progress, found=True)
    return None
