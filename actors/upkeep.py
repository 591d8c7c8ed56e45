"""The upkeep actor: looks at a table every `lake.upkeep.interval_s`, in a thread.

Next in the flow: `k2ray/lake/upkeep.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from actors.child import Child
from k2ray.errors import TryAgain
from k2ray.lake.upkeep import TableUpkeep


class UpkeepActor(Child):
    """Keeps one table small; named `upkeep:<table>#<generation>`."""

    turn_limit_s = 600.0  # a first look at a long neglected table deletes many files

    def __init__(self, name: str, settings_json: str) -> None:
        super().__init__(name, settings_json)
        (table,) = self.name.owns
        self._upkeep = TableUpkeep(self.settings, self.layout, table)
        self._looks = self._expired = self._deleted = 0
        self._tagged: str | None = None
        self._trouble: str | None = None

    async def main(self) -> None:
        """Look after the table until drained."""
        await asyncio.to_thread(self._work)

    def _work(self) -> None:
        while not self.stopping.is_set():
            self.turn()
            try:
                report = self._upkeep.step()
            except TryAgain as error:
                self.log.warning("try again", reason=str(error))
                self._trouble = str(error)
            else:
                self._trouble = None
                self._looks += 1
                self._expired += report.snapshots_expired
                self._deleted += report.files_deleted
                self._tagged = report.tagged or self._tagged
            self._pause()

    def _pause(self) -> None:
        """Wait for the next look, turning all the while."""
        left_s = self.settings.lake.upkeep.interval_s
        while left_s > 0 and not self.stopping.wait(min(1.0, left_s)):
            self.turn()
            left_s -= 1.0

    def report(self) -> dict[str, Any]:
        """Return what was done since the start."""
        return {
            "looks": self._looks,
            "snapshots_expired": self._expired,
            "files_deleted": self._deleted,
            "tagged": self._tagged,
            "trouble": self._trouble,
        }
