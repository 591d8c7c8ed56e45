"""The upkeep actor: looks at a table every `lake.upkeep.interval_s`, in a thread that yields to everybody else's.

Next in the flow: `k2ray/lake/upkeep.py`.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from actors.child import Child
from actors.faults import FaultPoints
from actors.leases import LeasesHeard
from k2ray.errors import DiskFull, TryAgain
from k2ray.lake.compaction_commit import GaveWay
from k2ray.lake.upkeep import TableUpkeep, UpkeepReport

NICENESS = 4
"""Compaction takes seconds of CPU every hour; feeds, writers and queries on the same cores go first.

Not nicer: starved while it holds the interpreter's lock, it would leave the actor without an answer to the supervisor.
"""


class UpkeepActor(Child):
    """Keeps one table small; named `upkeep:<table>#<generation>`."""

    turn_limit_s = 600.0  # a first look at a long neglected table deletes many files

    def __init__(self, name: str, settings_json: str) -> None:
        super().__init__(name, settings_json)
        (table,) = self.name.owns
        faults = FaultPoints(self.layout.run, self.name.logical)
        leases = LeasesHeard(self.layout.namespace, table, self.settings.api.cursor_lease_s)
        self._upkeep = TableUpkeep(self.settings, self.layout, table, leases=leases, faults=faults, alive=self._go_on)
        self._counts = dict.fromkeys(("looks", "snapshots_expired", "files_deleted", "compactions", "gave_way"), 0)
        self._counts |= dict.fromkeys(("refused", "files_compacted", "rows_compacted"), 0)
        self._left = 0
        self._tagged: str | None = None
        self._trouble: str | None = None

    async def main(self) -> None:
        """Look after the table until drained."""
        await asyncio.to_thread(self._work)

    def _work(self) -> None:
        os.nice(NICENESS)  # of this thread alone, on Linux
        try:
            while not self.stopping.is_set():
                self.turn()
                try:
                    self._note(self._upkeep.step())
                    self._trouble = self._upkeep.trouble
                except TryAgain as error:
                    say = self.log.error if isinstance(error, DiskFull) else self.log.warning
                    say("try again", reason=str(error))
                    self._trouble = str(error)
                self._pause()
        finally:
            self._upkeep.close()

    def _go_on(self) -> None:
        """Called often during a compaction: show that it turns, and end it when told to stop."""
        self.turn()
        if self.stopping.is_set():
            raise GaveWay("upkeep is being stopped")

    def _note(self, report: UpkeepReport) -> None:
        done = report.compaction
        self._counts["looks"] += 1
        self._counts["snapshots_expired"] += report.snapshots_expired
        self._counts["files_deleted"] += report.files_deleted
        self._counts["compactions"] += done.done
        self._counts["gave_way"] += done.gave_way
        self._counts["refused"] += done.refused
        self._counts["files_compacted"] += done.files
        self._counts["rows_compacted"] += done.rows
        self._left = done.left
        self._tagged = report.tagged or self._tagged

    def _pause(self) -> None:
        """Wait for the next look, turning all the while; not while compactions wait."""
        left_s = 0.0 if self._left else self.settings.lake.upkeep.interval_s
        while left_s > 0 and not self.stopping.wait(min(1.0, left_s)):
            self.turn()
            left_s -= 1.0

    def report(self) -> dict[str, Any]:
        """Return what was done since the start."""
        return {**self._counts, "compactions_left": self._left, "tagged": self._tagged, "trouble": self._trouble}
