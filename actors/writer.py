"""The writer actor: gives a `TableWriter` a process and a thread.

What is away (broker, catalog) is waited for inside, with backoff: a restart would help nobody. What only a person may
decide ends `run()` with that error, and the supervisor marks the writer as failed.

Next in the flow: `k2ray/lake/writer.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

from actors.child import Child
from actors.faults import FaultPoints
from actors.rates import Rate
from actors.schemas import schemas_of
from k2ray.errors import TryAgain
from k2ray.lake.writer import TableWriter

STEP_WAIT_S = 0.1
RETRY_FIRST_S = 0.2
RETRY_MAX_S = 5.0
GAPS_SHOWN = 1_000


class WriterActor(Child):
    """Owns one table; named `writer:<table>#<generation>`."""

    turn_limit_s = 120.0  # one step may hold a whole commit, whose retries against a busy catalog take their time

    def __init__(self, name: str, settings_json: str) -> None:
        super().__init__(name, settings_json)
        table = self.name.owns[0]
        faults = FaultPoints(self.layout.run, self.name.logical)
        schemas = schemas_of(self.layout.namespace, self.settings)
        self._writer = TableWriter(self.settings, self.layout, table, self.bootstrap, faults=faults, schemas=schemas)
        self._rate = Rate()
        self._has_read = False

    async def main(self) -> None:
        """Write until drained."""
        await asyncio.to_thread(self._work)

    def _work(self) -> None:
        try:
            retry_s = RETRY_FIRST_S
            while not self.stopping.is_set():
                self.turn()
                positioned = self._writer.status().positioned
                try:
                    self._writer.step(STEP_WAIT_S)
                    retry_s = RETRY_FIRST_S
                    self._has_read = self._has_read or positioned
                except TryAgain as error:
                    self.log.warning("try again", reason=str(error), after_s=retry_s)
                    self.stopping.wait(retry_s)
                    retry_s = min(RETRY_MAX_S, retry_s * 2)
            self._finish()
        finally:
            self._writer.close()

    def _finish(self) -> None:
        """Commit what Kafka holds, within the time that the supervisor allows; the rest stays in Kafka."""
        deadline_s = time.monotonic() + self.settings.supervision.drain_timeout_s * 0.8
        while (left_s := deadline_s - time.monotonic()) > 0:
            self.turn()
            try:
                done = self._writer.drain(left_s)
            except TryAgain as error:
                self.log.warning("drain: try again", reason=str(error))
                time.sleep(min(RETRY_FIRST_S, left_s))
                continue
            self.log.info("drained", all=done)
            return
        self.log.warning("not all was committed before the deadline; it is in Kafka")

    def ready(self) -> bool:
        """Whether the table was opened, the positions found in it, and Kafka read from there."""
        return self._has_read and self._writer.status().trouble is None

    def report(self) -> dict[str, Any]:
        """Return the writer's numbers and its open gaps."""
        status = dataclasses.asdict(self._writer.status())
        read = status["rows_committed"] + status["rows_pending"]
        return {
            **status,
            "rate": self._rate.note(read, time.monotonic()),
            "gaps": [dataclasses.asdict(gap) for gap in self._writer.gaps()[:GAPS_SHOWN]],
        }
