"""Small children for the supervisor's tests: what they do is said by a file, `<data_dir>/dummy/<logical>`."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from actors.child import Child
from k2ray.errors import OperatorNeeded

LEAK_BYTES = 400_000
"""Each of 50 ticks a second."""

DUMMY = "tests.support.dummies:Dummy"


class Dummy(Child):
    """Ticks until told otherwise: `raise`, `end`, `operator`, `block` (its loop stops turning), `deaf to drain`.

    `leak 1`: generation 1 leaks 20 MB a second; `unready 2`: generation 2 never works on live data.
    """

    turn_limit_s = 3.0

    def __init__(self, name: str, settings_json: str) -> None:
        super().__init__(name, settings_json)
        self.ticks = 0
        self.hoard: list[bytes] = []
        self.is_ready = False
        self.wish = self.layout.root / "dummy" / self.name.logical
        (self.layout.root / "drained").mkdir(parents=True, exist_ok=True)

    async def main(self) -> None:
        while True:
            self.turn()
            self.ticks += 1
            wish = self.wish.read_text() if self.wish.exists() else ""
            mine = wish.split()[-1:] == [str(self.name.generation)]
            if mine and wish.startswith("leak"):
                self.hoard.append(os.urandom(LEAK_BYTES))
            self.is_ready = not (mine and wish.startswith("unready"))
            if wish == "raise":
                raise RuntimeError("as told")
            if wish == "operator":
                raise OperatorNeeded("another topic id")
            if wish == "end":
                return
            if wish == "block":
                time.sleep(3600)  # noqa: ASYNC251  that is the point
            if self.stopping.is_set() and wish != "deaf to drain":
                (self.layout.root / "drained" / f"{self.name}").write_text(str(time.monotonic()))
                return
            await asyncio.sleep(0.02)

    def ready(self) -> bool:
        return self.is_ready

    async def order(self, order: str, **arguments: Any) -> dict[str, Any]:
        if order == "greet":
            return {"said": f"hello {arguments['whom']}", "by": str(self.name)}
        return await super().order(order, **arguments)

    def report(self) -> dict[str, Any]:
        return {"ticks": self.ticks, "rate": 50.0, "data_age_s": 0.1}
