"""Recorded frames, sent again."""

import asyncio
import gzip
import json
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.support.recordings import recording
from tests.support.sim import start_sim

pytestmark = pytest.mark.integration


async def test_recorded_frames_are_sent_as_they_were_to_whom_they_concern(tmp_path: Path) -> None:
    with gzip.open(recording("binance"), "rt") as lines:
        frames = [json.loads(line)["frame"] for line in lines]
    wanted = [frame for frame in frames if "@bookTicker" in frame or "@aggTrade" in frame]
    streams = sorted({json.loads(frame)["stream"] for frame in wanted})
    with start_sim(tmp_path, replay=recording("binance"), arguments=["--speed", "0"]) as sim:
        url = f"{sim.ws_url}/stream?streams={'/'.join(streams)}"
        async with connect(url, ssl=sim.tls(), compression=None) as websocket, asyncio.timeout(30):
            assert [await websocket.recv() for _ in wanted] == wanted
        state = await asyncio.to_thread(sim.state)
        assert state["sent"] == {"bookTicker": 84, "aggTrade": 2}
        assert state["unheard"]["depth@100ms"] == 177
        info = await asyncio.to_thread(sim.get, "/api/v3/exchangeInfo")
        assert ("NKNUSDT", "NKN", "USDT") in {(s["symbol"], s["baseAsset"], s["quoteAsset"]) for s in info["symbols"]}
        assert {s["symbol"].lower() for s in info["symbols"]} >= {stream.partition("@")[0] for stream in streams}
        assert (await asyncio.to_thread(sim.get, "/api/v3/time"))["serverTime"] > 0


async def test_a_replay_can_loop_in_the_pace_it_was_recorded(tmp_path: Path) -> None:
    file = tmp_path / "frames.jsonl"
    file.write_text(
        "".join(
            json.dumps({"received": 100 + n * 0.5, "frame": f'{{"stream":"ausdt@trade","data":{{"t":{n}}}}}'}) + "\n"
            for n in range(3)
        )
    )
    with start_sim(tmp_path, replay=file, arguments=["--speed", "5", "--loop"]) as sim:
        began = asyncio.get_running_loop().time()
        async with connect(f"{sim.ws_url}/ws/ausdt@trade", ssl=sim.tls()) as websocket, asyncio.timeout(30):
            assert [await websocket.recv() for _ in range(6)] == ['{"t":0}', '{"t":1}', '{"t":2}'] * 2
        assert asyncio.get_running_loop().time() - began >= 0.4
