"""What waits in the log for a writer that has just been born: its rows' wait for a commit began under the one before.

Rows are committed `lake.commit.interval_s` after the first of them came. A writer that was killed has left some behind
that have waited already, so their interval counts from when Kafka got them, and the batch is due as soon as all of them
are read. That is for the first time alone: writers that fight for a table would do it at the pace of their reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from k2ray.lake.progress import PartitionKey
from k2ray.lake.reading import Reading
from k2ray.log.records import Fetched, RecordRun


class Backlog:
    """Records below `ends` that were there at the start.

    Args:
        ends: Next offset of each partition's log at that time; none: there is no backlog.
    """

    def __init__(self, ends: Mapping[PartitionKey, int]) -> None:
        self._ends = ends
        self._oldest_us: int | None = None

    def note(self, items: Sequence[Fetched]) -> None:
        """Take note of records that were read."""
        if not self._ends:
            return
        for item in items:
            came_us = item.timestamps_us[0] if isinstance(item, RecordRun) else item.timestamp_us
            if came_us and (self._oldest_us is None or came_us < self._oldest_us):
                self._oldest_us = came_us

    def is_overdue(self, reading: Reading, now_us: int, interval_s: float) -> bool:
        """Whether all of it is read, and the oldest has waited for longer than an interval."""
        if not self._ends or self._oldest_us is None or reading.before(self._ends):
            return False
        return now_us - self._oldest_us >= interval_s * 1_000_000

    def note_handed_over(self, reading: Reading) -> None:
        """Take note that everything read so far is on its way into the table."""
        if not reading.before(self._ends):
            self._ends = {}
