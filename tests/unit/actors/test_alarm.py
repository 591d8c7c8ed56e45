from __future__ import annotations

import asyncio

from actors.alarm import Alarm


async def test_a_ring_ends_the_pause_and_is_heard_also_by_the_one_that_comes_after_it() -> None:
    alarm = Alarm()
    pause = asyncio.create_task(alarm.pause(3600))
    await asyncio.sleep(0)
    alarm.ring()
    await pause
    alarm.ring()
    await alarm.pause(3600)


async def test_a_pause_ends_by_itself_and_a_ring_ends_only_one() -> None:
    alarm = Alarm()
    alarm.ring()
    await alarm.pause(3600)
    await alarm.pause(0.001)
