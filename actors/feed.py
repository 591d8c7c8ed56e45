"""1. The feed actor: gives a `FeedSession` a process, a producer with its spool, and a drain.

Next in the flow: 2, `k2ray/feed/session.py`.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from actors.child import Child
from actors.limits import Permits
from actors.names import ActorName, wanted_actors
from actors.rates import Rate
from actors.schemas import encoder_of, keep_learning
from k2ray.feed.session import FeedSession
from k2ray.log.producer import LogProducer
from k2ray.log.spool import Spool

CLOSE_TIMEOUT_S = 5.0

SWITCH_INTERVAL_S = 0.0005
"""A reader that never waits keeps Ray's own threads from the interpreter: health answers took 5 s and more with
Python's default of 5 ms, and 9 ms with this."""


SCHEMAS_WAIT_S = 3.0
"""How long a feed that is to send Avro waits for its schema ids before it connects; rows before that go as Arrow."""


def spool_folder(spools: Path, name: ActorName) -> Path:
    """Return a feed's own folder, the same for all of its generations."""
    return spools / "-".join(name.owns)


def orphaned_spools(spools: Path, name: ActorName, wanted: Iterable[str]) -> list[Path]:
    """Return the folders of those feeds of this exchange that the settings do not ask for any more.

    With fewer connections, or one copy: what they could not deliver is the first feed's to deliver, or it lies there
    for good.

    Args:
        spools: Where all folders are.
        name: Who asks.
        wanted: All logical names.
    """
    exchange, *place = name.owns
    if place != ["0"]:
        return []
    owned = {spool_folder(spools, ActorName(logical, 1)) for logical in wanted if logical.startswith("feed:")}
    return sorted(folder for folder in spools.glob(f"{exchange}-*") if folder.is_dir() and folder not in owned)


class FeedActor(Child):
    """Records one connection's share of an exchange; named `feed:<exchange>:<index>#<generation>`.

    With `redundancy: 2` the second copy is named `feed:<exchange>:<index>:2`: the same symbols by another connection,
    from another process. Both publish everything, the ledger drops what came twice, so losing either loses nothing.
    """

    turn_limit_s = 15.0

    def __init__(self, name: str, settings_json: str) -> None:
        super().__init__(name, settings_json)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.overlap_s = self.settings.supervision.overlap_s
        exchange, index, *copy = self.name.owns
        spools = self.layout.spool
        orphans = orphaned_spools(spools, self.name, wanted_actors(self.settings))
        self._producer = LogProducer(
            self.bootstrap,
            client_id=self.name.logical,
            spool=Spool(spool_folder(spools, self.name), self.settings.feed.spool_max_bytes, orphans),
            settings=self.settings.kafka,
        )
        self._permits = Permits(self.layout.namespace, self.settings)
        self._encoder = encoder_of(self.layout.namespace, self.settings)
        self._session = FeedSession(
            self.settings,
            exchange,
            int(index),
            self._producer,
            copy=int(copy[0]) if copy else 1,
            permit=functools.partial(self._permits.permit, exchange),
            ban=functools.partial(self._permits.ban, exchange),
            encoder=self._encoder,
        )
        self._asked_to_drain = asyncio.Event()
        self._rate = Rate()

    async def main(self) -> None:
        """Record until drained; then flush, so that everything received is in Kafka or in the spool."""
        learning = asyncio.create_task(keep_learning(self._encoder, self.settings))
        await asyncio.wait({learning}, timeout=SCHEMAS_WAIT_S)
        recording = asyncio.create_task(self._session.run())
        asked = asyncio.create_task(self._asked_to_drain.wait())
        try:
            await asyncio.wait({recording, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not recording.done():
                flushed = await self._session.drain()
                self.log.info("drained", flushed=flushed)
            await recording
        finally:
            asked.cancel()
            learning.cancel()
            await asyncio.to_thread(self._producer.close, CLOSE_TIMEOUT_S)

    async def drain(self) -> None:
        """Stop reading and flush; `run()` returns when that is done."""
        await super().drain()
        self._asked_to_drain.set()

    async def order(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Carry out `rotate`: replace the connection, make before break; returns before that is done.

        Raises:
            BadInput: Any other order.
        """
        if order != "rotate" or arguments:
            return await super().order(order, **arguments)
        before = self._session.status()
        answer = self._session.rotate()
        return {"answer": answer, "rotations": before.rotations, "reconnects": before.reconnects}

    def ready(self) -> bool:
        """Whether its connection is known to deliver; a feed that owns no symbol has nothing to prove."""
        return self._session.status().ready

    def report(self) -> dict[str, Any]:
        """Return the session's and the producer's numbers."""
        session = self._session.status()
        produced = self._producer.stats()
        return {
            "turn_age_s": session.loop_age_s,
            "rate": self._rate.note(session.rows, time.monotonic()),
            "data_age_s": session.last_data_age_s,
            "connection": session.state,
            "connected_s": session.connected_s,
            "rotating": session.rotating,
            "rotations": session.rotations,
            "reconnects": session.reconnects,
            "pings": session.pings,
            "pongs": session.pongs,
            "stale_probes": session.stale_probes,
            "pong_age_s": session.last_pong_age_s,
            "last_close": session.last_reason,
            "bytes": session.bytes,
            "frames": session.frames,
            "rows": session.rows,
            "dead_letters": session.dead_letters,
            "ignored": session.ignored,
            "rows_delivered": produced.rows_delivered,
            "rows_in_flight": produced.rows_in_flight,
            "spool_bytes": produced.spool_bytes,
            "shed_rows": produced.shed_rows,
            "unknown_symbols": list(session.unknown_symbols),
        }
