"""The ledger beside the table: read and held against the key, or made ready to be written with the next commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyiceberg.io import FileIO
from pyiceberg.table import Table

from k2ray.errors import CatalogUnavailable, OperatorNeeded, TryAgain
from k2ray.lake.durable import AWAY
from k2ray.lake.progress import Offset, PartitionKey, Progress
from k2ray.ledger import Ledger, LedgerParams
from k2ray.ledger.file import LedgerPosition, decode_ledger, encode_ledger


def load_ledger(io: FileIO, progress: Progress, table_name: str) -> Ledger:
    """Return the ledger that a key names.

    Args:
        io: The table's.
        progress: The key; without a ledger file it must not have moved from the start.
        table_name: For the parameters of a new table's ledger.

    Raises:
        OperatorNeeded: The file is gone, unreadable, or of other offsets than the committed ones: what was stored is
            unknown, so writing on could double rows.
        CatalogUnavailable: The storage does not answer; call again.
    """
    if progress.ledger is None:
        moved = [key for key, offset in progress.offsets.items() if offset.next]
        if moved:
            raise OperatorNeeded(f"snapshot {progress.snapshot_id} has offsets of {moved[0]} and names no ledger file")
        return Ledger(LedgerParams.for_table(table_name))
    try:
        with io.new_input(progress.ledger).open() as stream:
            content = stream.read()
    except FileNotFoundError as error:
        raise OperatorNeeded(f"the ledger file {progress.ledger} is gone") from error
    except AWAY as error:
        raise CatalogUnavailable(f"cannot read {progress.ledger}: {error}") from error
    ledger, positions = decode_ledger(content)
    wanted = _positions(progress.offsets, progress.topics)
    if dict(positions) != wanted:
        different = sorted(key for key in {*positions, *wanted} if positions.get(key) != wanted.get(key))
        key = different[0]
        raise OperatorNeeded(
            f"{progress.ledger} is of {positions.get(key)} in {key[0]}[{key[1]}], the key says {wanted.get(key)}"
        )
    return ledger


def load_ledger_beside_writer(
    table: Table, progress: Progress, table_name: str, newest: Callable[[str], Table]
) -> Ledger:
    """Return the ledger that a head's key names, while a writer and upkeep go on: its file may be gone meanwhile.

    Args:
        table: The head.
        progress: Its key.
        table_name: As `newest` wants it.
        newest: Loads the newest head.

    Raises:
        OperatorNeeded: As `load_ledger`, and this is still the newest head.
        TryAgain: It was not any more, or catalog or storage do not answer; begin again with the newest head.
    """
    try:
        return load_ledger(table.io, progress, table_name)
    except OperatorNeeded:
        if newest(table_name).metadata_location == table.metadata_location:
            raise
        raise TryAgain(f"{table_name}: the snapshot expired while it was read") from None


def dump_ledger(ledger: Ledger, offsets: Mapping[PartitionKey, Offset], topics: Mapping[str, str]) -> bytes:
    """Return the content of a ledger file as of `offsets`.

    Args:
        ledger: Its decisions up to these offsets.
        offsets: Of all partitions that the key will name.
        topics: Topic name -> topic id.
    """
    return encode_ledger(ledger, _positions(offsets, topics))


def _positions(offsets: Mapping[PartitionKey, Offset], topics: Mapping[str, str]) -> dict[PartitionKey, LedgerPosition]:
    return {key: LedgerPosition(topics.get(key[0], ""), offset.next) for key, offset in sorted(offsets.items())}
