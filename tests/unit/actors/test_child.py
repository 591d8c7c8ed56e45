from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from actors.child import Child
from k2ray.errors import BadInput, SettingsError
from k2ray.settings import load_settings


class Worker(Child):
    def __init__(self, name: str, settings_json: str) -> None:
        super().__init__(name, settings_json)
        self.begun = 0

    async def main(self) -> None:
        self.begun += 1
        while not self.stopping.is_set():
            self.turn()
            await asyncio.sleep(0.001)
        raise RuntimeError("the end")


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker("feed:binance:0#7", load_settings(arguments={"data_dir": str(tmp_path)}, environ={}).to_json())


async def test_every_caller_of_run_sees_the_one_end(worker: Worker) -> None:
    callers = [asyncio.create_task(worker.run()) for _ in range(3)]
    await asyncio.sleep(0.01)
    callers[0].cancel()
    await worker.drain()
    ends = await asyncio.gather(*callers, return_exceptions=True)
    assert worker.begun == 1
    assert [type(end) for end in ends] == [asyncio.CancelledError, RuntimeError, RuntimeError]


async def test_health_says_who_where_and_how_big(worker: Worker) -> None:
    health = await worker.health()
    assert health["pid"] == os.getpid()
    assert health["rss_bytes"] > 1_000_000
    assert health["turn_age_s"] < health["turn_limit_s"]
    assert "/" in health["node"]


async def test_it_is_ready_once_its_loop_turned_and_tells_what_its_memory_does(worker: Worker) -> None:
    assert (await worker.health())["ready"] is False
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(0.01)
    health = await worker.health()
    assert health["ready"] is True
    assert health["overlap_s"] == 0.0
    assert health["memory"]["rss_bytes"] == health["rss_bytes"]
    assert health["memory"]["samples"] == 0, "the first minutes are a warm-up"
    assert health["memory"]["complete"] is False
    await worker.drain()
    with pytest.raises(RuntimeError, match="the end"):
        await task


async def test_a_role_without_orders_says_so(worker: Worker) -> None:
    with pytest.raises(BadInput, match="a feed takes no order 'rotate'"):
        await worker.order("rotate")


def test_an_actor_writes_a_log_of_its_own(worker: Worker) -> None:
    worker.log.info("hello")
    assert '"event": "hello"' in (worker.layout.logs / "feed-binance-0-7.jsonl").read_text()


def test_an_actor_does_not_guess_where_kafka_is(worker: Worker) -> None:
    with pytest.raises(SettingsError, match=r"kafka\.bootstrap_servers"):
        _ = worker.bootstrap
