"""What is committed of one exchange's streams: the newest snapshot's ledger, read again only when the snapshot changed.

Next in the flow: `plan.py` decides what to ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyiceberg.catalog import Catalog

from k2ray.backfill.model import Committed, Hole, Stream
from k2ray.clock import Clock
from k2ray.errors import OperatorNeeded, TableMissing
from k2ray.lake.ledger_file import load_ledger_beside_writer
from k2ray.lake.progress import Progress, committed_progress
from k2ray.ledger import Gap, Ledger
from k2ray.ledger.spaces import Instrument
from k2ray.log.partition import partition_of
from k2ray.log.topics import ASSET_CLASSES, topic_name
from k2ray.model import CHANNELS, Channel
from k2ray.query.heads import Heads
from k2ray.settings import Settings


@dataclass(frozen=True)
class TableLook:
    """What one snapshot says.

    Attributes:
        snapshot_id: Of the newest progress key.
        gaps: Of this exchange, sealed ones included.
        streams: What the planner wants to know of each recorded stream.
    """

    snapshot_id: int | None = None
    gaps: tuple[Gap, ...] = ()
    streams: Mapping[Stream, Committed] = field(default_factory=dict)


def proving_channels(settings: Settings, exchange: str) -> list[Channel]:
    """Return the recorded channels whose missing ids prove missing rows."""
    chosen = settings.exchanges.enabled()[exchange].channels
    return [channel for channel in CHANNELS.values() if channel.name in chosen and channel.proves_gaps]


class CommittedLedgers:
    """Reads the ledgers of the tables that an exchange's streams go to; blocking.

    Args:
        catalog: Opened with `open_catalog`.
        settings: What is recorded.
        exchange: Whose streams.
        clock: For `Heads`.
    """

    def __init__(self, catalog: Catalog, settings: Settings, exchange: str, clock: Clock) -> None:
        self._settings = settings
        self._exchange = exchange
        self._heads = Heads(catalog, settings, clock)
        self._channels = proving_channels(settings, exchange)
        self._seen: dict[str, tuple[str, TableLook]] = {}

    @property
    def tables(self) -> list[str]:
        """The tables that are looked at."""
        return list(dict.fromkeys(channel.table for channel in self._channels))

    def look(self, table_name: str) -> TableLook:
        """Return what the newest snapshot says; the same object as long as it is the newest.

        Raises:
            TryAgain: Catalog or storage do not answer; call again after a pause. A table that does not exist yet is
                an empty look.
            OperatorNeeded: The ledger cannot be read.
        """
        try:
            table = self._heads.current(table_name)
        except TableMissing:
            if table_name in self._seen:
                raise
            return self._nothing(table_name)
        seen = self._seen.get(table_name)
        if seen is not None and seen[0] == table.metadata_location:
            return seen[1]
        progress = committed_progress(table.metadata)
        if progress is None and not table.metadata.snapshots:
            return self._nothing(table_name)  # between its creation and its genesis
        if progress is None:
            raise OperatorNeeded(f"{table_name}: no snapshot carries a progress key")
        if seen is not None and progress.snapshot_id == seen[1].snapshot_id:
            self._seen[table_name] = (table.metadata_location, seen[1])
            return seen[1]
        ledger = load_ledger_beside_writer(table, progress, table_name, self._heads.current)
        look = self._read(table_name, ledger, progress)
        self._seen[table_name] = (table.metadata_location, look)
        return look

    def partition(self, stream: Stream) -> tuple[str, int]:
        """Return the topic and partition of a stream."""
        channel, symbol = stream
        topic = topic_name(self._settings.kafka.topic_prefix, ASSET_CLASSES[self._exchange], channel, self._exchange)
        return topic, partition_of(self._exchange, symbol, self._settings.kafka.partitions)

    def _nothing(self, table_name: str) -> TableLook:
        return TableLook(streams={stream: Committed() for stream in self._streams(table_name)})

    def _streams(self, table_name: str) -> list[Stream]:
        symbols = self._settings.exchanges.enabled()[self._exchange].symbols
        return [
            (channel.name, symbol) for channel in self._channels if channel.table == table_name for symbol in symbols
        ]

    def _read(self, table_name: str, ledger: Ledger, progress: Progress) -> TableLook:
        gaps = tuple(gap for gap in ledger.gaps() if gap.exchange == self._exchange)
        instruments = {
            (instrument.symbol, instrument.base): instrument
            for instrument in ledger.instruments()
            if instrument.exchange == self._exchange
        }
        holes: dict[tuple[str, str], list[Hole]] = {}
        for gap in gaps:
            if not gap.sealed:
                base = gap.sequence_space.partition("#")[0]
                hole = Hole(gap.first_id, gap.last_id, gap.since_us, gap.until_us, gap.sequence_space)
                holes.setdefault((gap.symbol, base), []).append(hole)
        streams = {}
        for channel, symbol in self._streams(table_name):
            key = (symbol, CHANNELS[channel].space)
            offset = progress.offset(self.partition((channel, symbol))).next
            head = _head(instruments.get(key))
            streams[channel, symbol] = Committed(tuple(holes.get(key, ())), *head, offset=offset)
        return TableLook(progress.snapshot_id, gaps, streams)


def _head(instrument: Instrument | None) -> tuple[int | None, int, str]:
    """Return id and event time of the newest numbering's highest row, and its name."""
    spaces = [] if instrument is None else [space for space in instrument.spaces if len(space.intervals)]
    if instrument is None or not spaces:
        return None, 0, ""
    newest = max(spaces, key=lambda space: space.newest_us)
    name = instrument.base if newest.number == 1 else f"{instrument.base}#{newest.number}"
    return newest.intervals.hi[-1], newest.intervals.last_us[-1], name
