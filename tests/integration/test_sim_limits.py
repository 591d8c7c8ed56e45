"""What the simulated exchange allows, over TLS: lifetimes and their notice, messages, connects, streams, weights."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.eventually import eventually
from tests.support.sim import Sim, start_sim

pytestmark = pytest.mark.integration


@asynccontextmanager
async def client(sim: Sim, path: str, **options: Any) -> AsyncIterator[ClientConnection]:
    options = {"ssl": sim.tls(), "compression": None, "max_size": None, "close_timeout": 0.2, **options}
    async with connect(sim.ws_url + path, **options) as websocket:
        yield websocket


async def frames_until_closed(websocket: ClientConnection) -> tuple[list[Any], int | None]:
    frames: list[Any] = []
    async with asyncio.timeout(30):
        try:
            while True:
                frames.append(json.loads(await websocket.recv()))
        except ConnectionClosed as closed:
            return frames, closed.rcvd.code if closed.rcvd else None


async def test_a_connection_is_told_and_then_cut_at_the_end_of_its_life(tmp_path: Path) -> None:
    with start_sim(tmp_path, rate=50, truth=False, lifetime_s=3, shutdown_notice_s=1.5) as sim:
        began = time.monotonic()
        async with (
            client(sim, "/stream?streams=btcusdt@trade") as combined,
            client(sim, "/ws/btcusdt@trade?timeUnit=MICROSECOND") as raw,
        ):
            (of_combined, code), (of_raw, _) = await asyncio.gather(
                frames_until_closed(combined), frames_until_closed(raw)
            )
        lived_s = time.monotonic() - began
        assert code == 1001
        assert lived_s >= 2.9
        (notice,) = [frame for frame in of_combined if frame["stream"] == "!serverShutdown"]
        assert notice["data"]["e"] == "serverShutdown"
        assert abs(notice["data"]["E"] / 1000 - time.time()) < 30
        assert of_combined[-1] != notice, "it goes on delivering until the cut"
        (bare,) = [frame for frame in of_raw if frame["e"] == "serverShutdown"]
        assert bare["E"] > 1e15
        counters = (await asyncio.to_thread(sim.state))["counters"]
        assert (counters["lifetime_cuts"], counters["shutdown_notices"]) == (2, 2)


async def test_a_notice_on_request_concerns_whom_it_names_and_ends_when_it_says(tmp_path: Path) -> None:
    with start_sim(tmp_path, rate=50, truth=False) as sim:
        async with (
            client(sim, "/stream?streams=btcusdt@trade") as one,
            client(sim, "/stream?streams=btcusdt@trade") as other,
        ):
            await one.recv()
            number = min(map(int, (await asyncio.to_thread(sim.state))["connections"]))
            await asyncio.to_thread(sim.fault, "server_shutdown", connection=number, seconds=0.5)
            frames, code = await frames_until_closed(one)
            assert code == 1001
            assert [frame["stream"] for frame in frames].count("!serverShutdown") == 1
            assert other.close_code is None
            async with asyncio.timeout(10):
                assert "serverShutdown" not in str(await other.recv())


async def test_who_sends_too_many_messages_is_disconnected_and_pongs_do_not_count(tmp_path: Path) -> None:
    with start_sim(tmp_path, rate=1, truth=False, ping_interval_s=0.1) as sim:
        async with client(sim, "/ws/btcusdt@trade") as calm:
            await asyncio.to_thread(
                eventually, lambda: sim.state()["counters"].get("pongs_received", 0) > 12, "many pongs"
            )
            assert calm.close_code is None
            async with client(sim, "/ws/btcusdt@trade") as hasty:
                for number in range(7):
                    await hasty.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": number}))
                _, code = await frames_until_closed(hasty)
            assert code == 1008
            assert calm.close_code is None
        assert (await asyncio.to_thread(sim.state))["counters"]["message_limit_cuts"] == 1


async def test_too_many_connects_and_streams_are_refused(tmp_path: Path) -> None:
    with start_sim(tmp_path, rate=1, truth=False, connects_per_5_min=2, streams=2) as sim:
        with pytest.raises(InvalidStatus) as refused:
            async with client(sim, "/stream?streams=btcusdt@trade/ethusdt@trade/bnbusdt@trade"):
                pass
        assert refused.value.response.status_code == 400
        async with client(sim, "/stream?streams=btcusdt@trade/ethusdt@trade") as websocket:
            await websocket.send(json.dumps({"method": "SUBSCRIBE", "params": ["bnbusdt@trade"], "id": 1}))
            async with asyncio.timeout(10):
                while "id" not in (answer := json.loads(await websocket.recv())):
                    pass
            assert "more than 2 streams" in answer["error"]["msg"]
        async with client(sim, "/ws/btcusdt@trade"):
            pass
        with pytest.raises(InvalidStatus) as refused:
            async with client(sim, "/ws/btcusdt@trade"):
                pass
        assert refused.value.response.status_code == 429
        assert (await asyncio.to_thread(sim.state))["counters"]["connects_refused"] == 1


def test_rest_charges_weight_and_bans_who_goes_on(tmp_path: Path) -> None:
    with (
        start_sim(tmp_path, rate=50, truth=False, weight_per_min=60, ban_s=30) as sim,
        httpx.Client(verify=sim.tls(), base_url=sim.rest_url) as http,
    ):

        def ask() -> httpx.Response:
            return http.get("/api/v3/historicalTrades", params={"symbol": "BTCUSDT", "limit": 1})

        # A minute may end between the questions: then the sum begins anew.
        used = [ask() for _ in range(2)]
        assert [answer.status_code for answer in used] == [200, 200]
        assert used[0].headers["X-MBX-USED-WEIGHT-1M"] == "25"
        answers = [ask() for _ in range(16)]
        statuses = [answer.status_code for answer in answers]
        assert 429 in statuses
        assert statuses[-1] == 418
        first = answers[statuses.index(429)]
        assert 1 <= int(first.headers["retry-after"]) <= 60
        assert first.json()["code"] == -1003
        assert int(answers[-1].headers["retry-after"]) <= 30
        sim.fault("clear")
        assert ask().status_code == 200
        sim.fault("rest_refuse", code=418, seconds=60)
        assert ask().status_code == 418
        sim.fault("clear")
        assert ask().status_code == 200


def test_rest_forgets_old_trades_and_answers_from_what_it_knows(tmp_path: Path) -> None:
    with start_sim(tmp_path, rate=200, truth=False, history_s=2) as sim:

        def from_the_start() -> list[int]:
            first = sim.state()["generated"]["BTCUSDT"]["trade"]["first_id"]
            rows = sim.get("/api/v3/historicalTrades", symbol="BTCUSDT", fromId=first, limit=1) if first else []
            return [row["id"] - first for row in rows]

        begin = eventually(lambda: [at for at in from_the_start() if at > 100], "the first ids are gone")
        sim.fault("history_gone", symbol="BTCUSDT")
        (later,) = eventually(lambda: from_the_start(), "trades go on")
        assert later > begin[0]


async def test_during_an_outage_nobody_listens_and_then_all_is_back(tmp_path: Path) -> None:
    with start_sim(tmp_path, rate=100) as sim:
        async with client(sim, "/stream?streams=btcusdt@trade") as websocket:
            last = json.loads(await websocket.recv())["data"]["t"]
            await asyncio.to_thread(sim.fault, "outage", seconds=2)
            frames, code = await frames_until_closed(websocket)
        last = frames[-1]["data"]["t"] if frames else last
        assert code is None, "TCP ended without a close frame"
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", sim.port)
        async with asyncio.timeout(30):
            while True:
                try:
                    async with client(sim, "/stream?streams=btcusdt@trade") as websocket:
                        first = json.loads(await websocket.recv())["data"]["t"]
                    break
                except OSError:
                    await asyncio.sleep(0.05)
        truth = (await asyncio.to_thread(sim.truth_now)).to_pylist()
        ids = {row["id"] for row in truth if (row["channel"], row["symbol"]) == ("trade", "BTCUSDT")}
        assert first > last + 1
        assert set(range(last, first + 1)) <= ids, "the market went on meanwhile"
        rows = await asyncio.to_thread(
            sim.get, "/api/v3/historicalTrades", symbol="BTCUSDT", fromId=last + 1, limit=first - last - 1
        )
        assert [row["id"] for row in rows] == list(range(last + 1, first))


async def test_the_exchanges_clock_steps_and_the_truth_says_so(tmp_path: Path) -> None:
    with start_sim(tmp_path, rate=200) as sim:
        async with client(sim, "/stream?streams=btcusdt@trade&timeUnit=MICROSECOND") as websocket:

            async def until_at(hours: int) -> dict[int, int]:
                seen: dict[int, int] = {}
                async with asyncio.timeout(30):
                    while True:
                        data = json.loads(await websocket.recv())["data"]
                        seen[data["t"]] = data["E"]
                        if round((data["E"] / 1e6 - time.time()) / 3600) == hours:
                            return seen

            seen = await until_at(0)
            for seconds, hours in ((3600, 1), (-7200, -1)):
                await asyncio.to_thread(sim.fault, "clock_step", seconds=seconds)
                seen |= await until_at(hours)
                server_s = (await asyncio.to_thread(sim.get, "/api/v3/time"))["serverTime"] / 1000
                assert round((server_s - time.time()) / 3600) == hours
            await asyncio.to_thread(sim.fault, "clear")
            seen |= await until_at(0)
        assert sorted(seen) == list(range(min(seen), max(seen) + 1)), "ids go on as if nothing happened"
        truth = {
            row["id"]: row["event_us"]
            for row in (await asyncio.to_thread(sim.truth_now)).to_pylist()
            if (row["channel"], row["symbol"]) == ("trade", "BTCUSDT")
        }
        assert {number: truth[number] for number in seen} == seen


@pytest.mark.parametrize(
    ("how", "why"),
    [("expired", "expired"), ("self_signed", "self-signed"), ("revoked", "revoked"), ("revoked_ca", "revoked")],
)
async def test_each_bad_certificate_can_be_served(tmp_path: Path, how: str, why: str) -> None:
    with start_sim(tmp_path, rate=1, truth=False) as sim:
        careful = sim.tls()
        careful.load_verify_locations(sim.crl_file)
        careful.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
        async with client(sim, "/ws/btcusdt@trade", ssl=careful):
            pass
        await asyncio.to_thread(sim.fault, "wrong_certificate", how=how)
        with pytest.raises(ssl.SSLCertVerificationError, match=why):
            async with client(sim, "/ws/btcusdt@trade", ssl=careful):
                pass


async def test_a_book_kept_from_snapshot_and_stream_is_the_exchanges(tmp_path: Path) -> None:
    with start_sim(tmp_path, rate=1, truth=False) as sim:
        async with client(sim, "/stream?streams=btcusdt@depth/btcusdt@depth@100ms") as websocket:
            snapshot = await asyncio.to_thread(sim.get, "/api/v3/depth", symbol="BTCUSDT", limit=5000)
            last = {"btcusdt@depth": 0, "btcusdt@depth@100ms": 0}
            async with asyncio.timeout(30):
                while min(last.values()) <= snapshot["lastUpdateId"] + 60:
                    frame = json.loads(await websocket.recv())
                    event = frame["data"]
                    assert last[frame["stream"]] in (0, event["U"] - 1)
                    last[frame["stream"]] = event["u"]
        sent = (await asyncio.to_thread(sim.state))["counters"]
        assert sent["websockets_opened"] == 1
