"""Rows given up since neither Kafka nor the disk would take them: counted, and every trade of them in a gap."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.feed_world import SYMBOLS, FeedWorld, until
from tests.support.kafka import TestBroker
from tests.support.sim import start_sim

# The broker starts twice, which takes a busy machine minutes.
pytestmark = pytest.mark.timeout(400)

RATE = 5_000


@pytest.mark.chaos_full
async def test_rows_that_were_shed_are_counted_and_the_ledger_names_every_one(
    broker: TestBroker, tmp_path: Path
) -> None:
    """Trap 9: shed messages were committed, so gone, and uncounted."""
    with start_sim(tmp_path, rate=RATE, symbols=SYMBOLS) as busy:
        # So small a queue and spool that the first batches of a broker that takes nothing fill them.
        world = FeedWorld(
            broker, tmp_path, busy, kafka={"queue_max_bytes": 20_000, "delivery_timeout_s": 1}, spool_bytes=100_000
        )
        async with world.running():
            await world.received(RATE // 4)
            await asyncio.to_thread(broker.kill)
            try:
                await until(lambda: world.producers[0].stats().shed_rows > RATE // 4, "rows are shed")
            finally:
                await asyncio.to_thread(broker.broker.start)
            await until(lambda: world.producers[0].stats().spool_bytes == 0, "the spool is replayed")
            await world.received(RATE // 4)
        shed = world.producers[0].stats().shed_rows
        truth = busy.truth_now()
        trades, quotes = world.judge("trades", truth), world.judge("quotes", truth)
        assert trades.doubled == quotes.doubled == 0
        assert trades.missing == trades.lost, "every trade that was given up lies in a gap"
        lost = sum(len(ids) for judged in (trades, quotes) for ids in judged.lost.values())
        # Some that were counted had reached the broker all the same, which died before it said so.
        assert 0 < lost <= shed, "none was given up uncounted"
