"""How far a writer is behind, without asking the broker: from what comes with the records anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from k2ray.lake.progress import PartitionKey
from k2ray.log.lag import LagWatch
from k2ray.log.records import Fetched, RecordRun, last_offset, record_count

POLL_RECORDS = 1_000
POLL_SMALL_RECORDS = 8_000
"""Records of one row are read column by column, which is worth while from some thousands on."""
SMALL_ROWS = 4
_WEIGHT = 0.2


class Reading:
    """Read positions and the average size of records; decides how many records to ask for.

    Args:
        positions: First offset to read of each partition.
    """

    def __init__(self, positions: dict[PartitionKey, int]) -> None:
        self.positions = positions
        self._rows_per_record = 100.0
        self._newest_us: int | None = None

    def note(self, items: Sequence[Fetched], rows: int) -> None:
        """Take note of records that were read, and of their rows."""
        for item in items:
            self.positions[item.topic, item.partition] = last_offset(item) + 1
        last = items[-1]
        self._newest_us = last.timestamps_us[-1] if isinstance(last, RecordRun) else last.timestamp_us
        self._rows_per_record += _WEIGHT * (rows / sum(map(record_count, items)) - self._rows_per_record)

    def records_wanted(self, rows: int) -> int:
        """Return how many records about make up `rows`."""
        most = POLL_RECORDS if self._rows_per_record > SMALL_ROWS else POLL_SMALL_RECORDS
        return max(1, min(most, round(rows / max(self._rows_per_record, 1.0))))

    def lag(self, watch: LagWatch, now_us: int) -> tuple[int, float]:
        """Return rows behind the read position, and the age in seconds of the newest record read while there are any.

        Args:
            watch: Knows the partitions' ends, and asks the broker seldom.
            now_us: Now.
        """
        records = sum(watch.behind(self.positions).values())
        if not records:
            return 0, 0.0
        age = 0.0 if self._newest_us is None else max(0.0, (now_us - self._newest_us) / 1_000_000)
        return round(records * self._rows_per_record), age

    def before(self, ends: Mapping[PartitionKey, int]) -> bool:
        """Return whether any partition was read less far than `ends`."""
        return any(self.positions.get(key, 0) < end for key, end in ends.items())
