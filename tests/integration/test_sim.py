"""The simulator as a process, over TLS: what clients get is what the truth says."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.eventually import eventually
from tests.support.sim import Sim, start_sim

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    with start_sim(tmp_path_factory.mktemp("sim"), rate=600) as running:
        yield running


@pytest.fixture(autouse=True)
def undisturbed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "sim" in request.fixturenames:
        request.getfixturevalue("sim").fault("clear")


@asynccontextmanager
async def client(sim: Sim, path: str, **options: Any) -> AsyncIterator[ClientConnection]:
    options = {"ssl": sim.tls(), "compression": None, "max_size": None, "close_timeout": 0.2, **options}
    async with connect(sim.ws_url + path, **options) as websocket:
        yield websocket


async def take(websocket: ClientConnection, count: int) -> list[Any]:
    async with asyncio.timeout(20):
        return [json.loads(await websocket.recv()) for _ in range(count)]


async def take_ids(websocket: ClientConnection, count: int) -> list[int]:
    return [frame["data"]["t"] for frame in await take(websocket, count)]


async def take_until(websocket: ClientConnection, seen: Callable[[list[int]], bool]) -> list[int]:
    """Return ids up to the first moment at which `seen(ids)`: on a busy machine a fault comes many frames later."""
    ids: list[int] = []
    async with asyncio.timeout(30):
        while not seen(ids):
            ids += await take_ids(websocket, 1)
    return ids


def contiguous(ids: list[int]) -> bool:
    return ids == list(range(ids[0], ids[0] + len(ids))) if ids else True


async def asked(function: Any, *arguments: Any, **named: Any) -> Any:
    return await asyncio.to_thread(function, *arguments, **named)


async def test_every_field_that_a_client_gets_is_in_the_truth(sim: Sim) -> None:
    streams = "/".join(f"{s}@{c}" for s in ("btcusdt", "ethusdt") for c in ("trade", "aggTrade", "bookTicker"))
    async with client(sim, f"/stream?streams={streams}&timeUnit=MICROSECOND") as websocket:
        frames = await take(websocket, 600)
    truth = {(row["channel"], row["symbol"], row["id"]): row for row in (await asked(sim.truth_now)).to_pylist()}
    kinds = set()
    for frame in frames:
        data, kind = frame["data"], frame["stream"].partition("@")[2]
        kinds.add(kind)
        assert frame["stream"] == f"{data['s'].lower()}@{kind}"
        row = truth[kind, data["s"], data[{"trade": "t", "aggTrade": "a", "bookTicker": "u"}[kind]]]
        if kind == "bookTicker":
            names = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")
            assert [data[key] for key in "bBaA"] == [row[name] for name in names]
            continue
        names = ("event_us", "trade_us", "price", "quantity", "is_buyer_maker")
        assert [data[key] for key in "ETpqm"] == [row[name] for name in names]
        if kind == "aggTrade":
            assert (data["f"], data["l"]) == (row["first_id"], row["last_id"])
    assert kinds == {"trade", "aggTrade", "bookTicker"}
    assert abs(frames[-1]["data"].get("E", time.time() * 1e6) / 1e6 - time.time()) < 30


async def test_raw_streams_and_requests_over_the_socket(sim: Sim) -> None:
    async with client(sim, "/ws/btcusdt@trade") as websocket:
        assert contiguous([frame["t"] for frame in await take(websocket, 20)])

        async def request(method: str, *params: str) -> Any:
            await websocket.send(json.dumps({"method": method, "params": params, "id": 7}))
            while True:
                (frame,) = await take(websocket, 1)
                if frame.get("id") == 7:
                    return frame

        assert await request("SUBSCRIBE", "ethusdt@bookTicker") == {"result": None, "id": 7}
        assert (await request("LIST_SUBSCRIPTIONS"))["result"] == ["btcusdt@trade", "ethusdt@bookTicker"]
        assert await request("UNSUBSCRIBE", "btcusdt@trade") == {"result": None, "id": 7}
        assert all("u" in frame for frame in await take(websocket, 20))
        assert (await request("NONSENSE"))["error"]["code"] == 2


async def test_rest_closes_what_an_id_gap_kept_back(sim: Sim) -> None:
    async with client(sim, "/stream?streams=btcusdt@trade") as websocket:
        ids = await take_ids(websocket, 5)
        await asked(sim.fault, "id_gap", count=7, symbol="BTCUSDT")
        ids += await take_until(websocket, lambda later: not contiguous(ids[-1:] + later))
    missing = sorted(set(range(ids[0], ids[-1])) - set(ids))
    assert len(missing) == 7
    assert contiguous(missing)
    rows = await asked(sim.get, "/api/v3/historicalTrades", symbol="BTCUSDT", fromId=missing[0], limit=7)
    assert [row["id"] for row in rows] == missing
    truth = (await asked(sim.truth_now)).to_pylist()
    marked = [row["id"] for row in truth if row["channel"] == "trade" and row["fault"] == "id_gap"]
    assert set(missing) <= set(marked)
    altered = (await asked(sim.state))["altered"][-1]
    assert (altered["fault"], altered["last_id"]) == ("id_gap", missing[-1])


async def test_duplicates_and_reordered_frames(sim: Sim) -> None:
    async with client(sim, "/stream?streams=ethusdt@trade") as websocket:
        await take(websocket, 5)
        await asked(sim.fault, "duplicate", count=3)
        ids = await take_until(websocket, lambda ids: len(ids) - len(set(ids)) == 3)
        assert ids == sorted(ids)
        await asked(sim.fault, "reorder", count=4)
        ids = await take_until(websocket, lambda ids: ids != sorted(ids) and contiguous(sorted(ids)))
        assert len(ids) == len(set(ids))


def unreadable(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return True
    return False


async def test_frames_that_cannot_be_read_leave_their_neighbours_alone(sim: Sim) -> None:
    async with client(sim, "/stream?streams=btcusdt@trade") as websocket:
        before = (await take(websocket, 5))[-1]["data"]["t"]
        await asked(sim.fault, "malformed", count=2)
        await asked(sim.fault, "oversized", count=1, size=5_000_000)
        await asked(sim.fault, "truncated", count=1)
        texts: list[str] = []
        # As long as it takes: each fault waits for a frame, and asking for it takes its time on a busy machine.
        async with asyncio.timeout(30):
            while sum(map(unreadable, texts)) < 3 or max(map(len, texts)) < 5_000_000 or unreadable(texts[-1]):
                texts.append(str(await websocket.recv()))
    readable = [json.loads(text)["data"]["t"] for text in texts if not unreadable(text)]
    assert len(texts) - len(readable) == 3, "two malformed and one cut; blanks behind a frame can be read"
    assert max(map(len, texts)) == 5_000_000
    assert len(set(range(before + 1, readable[-1])) - set(readable)) == len(texts) - len(readable)


async def test_restarted_ids_are_another_epoch(tmp_path: Path) -> None:
    with start_sim(tmp_path, rate=600) as sim:
        async with client(sim, "/stream?streams=btcusdt@trade/btcusdt@aggTrade") as websocket:
            await take(websocket, 20)
            assert (await asked(sim.fault, "id_reset", symbol="BTCUSDT"))["epochs"] == {"BTCUSDT": 1}
            ids: list[int] = []
            async with asyncio.timeout(30):
                while 1 not in ids or len(ids) - ids.index(1) < 50:
                    (frame,) = await take(websocket, 1)
                    ids += [frame["data"]["t"]] if "t" in frame["data"] else []
        assert sim.stop() == 0
        at = ids.index(1)
        assert contiguous(ids[at:])
        rows = pq.read_table(tmp_path / "truth.parquet", filters=[("channel", "=", "trade")]).to_pylist()
        epochs = {row["epoch"] for row in rows if row["symbol"] == "BTCUSDT" and row["id"] < 1_000_000}
        assert epochs == {1}
        assert {row["epoch"] for row in rows if row["symbol"] == "ETHUSDT"} == {0}


async def test_close_and_abort_end_connections_while_the_market_goes_on(sim: Sim) -> None:
    last = 0
    for how, code in (("frame", 1001), ("abort", 1006)):
        async with client(sim, "/stream?streams=btcusdt@trade") as websocket:
            (first,) = await take_ids(websocket, 1)
            assert first > last + 1 or last == 0
            await asked(sim.fault, "close", how=how)
            with pytest.raises(ConnectionClosed) as closed:
                await take(websocket, 10_000)
        last = first
        assert (closed.value.rcvd.code if closed.value.rcvd else 1006) == code


async def test_a_half_open_connection_says_nothing_and_stays(sim: Sim) -> None:
    """Trap 7: a heartbeat is tested against a peer that stops answering."""
    async with client(sim, "/stream?streams=btcusdt@trade") as websocket:
        await take(websocket, 5)
        number = next(n for n, c in sim.state()["connections"].items() if c["streams"] == ["btcusdt@trade"])
        await asked(sim.fault, "half_open", connection=int(number))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(take(websocket, 1_000_000), 0.7)
        pong = await websocket.ping()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pong, 0.7)
        assert websocket.close_code is None
        assert sim.state()["connections"][number]["frames_missed"] > 0


async def test_delayed_frames_come_later_and_complete(sim: Sim) -> None:
    async with client(sim, "/stream?streams=btcusdt@trade") as websocket:
        (before,) = await take_ids(websocket, 1)
        await asked(sim.fault, "delay", seconds=1.0)
        started, ids, longest = time.monotonic(), [before], 0.0
        while time.monotonic() - started < 2:
            at = time.monotonic()
            ids += await take_ids(websocket, 1)
            longest = max(longest, time.monotonic() - at)
    assert longest > 0.5
    assert contiguous(ids)


@pytest.mark.parametrize("how", ["other_host", "untrusted"])
async def test_a_wrong_certificate_is_refused_by_clients_and_can_be_taken_back(sim: Sim, how: str) -> None:
    # The request to take it back must get through, so the wrong one is only served for a moment.
    await asked(sim.fault, "wrong_certificate", how=how, seconds=0.5)
    with pytest.raises(ssl.SSLCertVerificationError):
        async with client(sim, "/ws/btcusdt@trade"):
            pass
    async with asyncio.timeout(10):
        while True:
            try:
                async with client(sim, "/ws/btcusdt@trade") as websocket:
                    await take(websocket, 1)
                return
            except ssl.SSLCertVerificationError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("body", [{"fault": "explode"}, {"fault": "close", "connection": 99_999}])
def test_impossible_faults_are_refused(sim: Sim, body: dict[str, Any]) -> None:
    import httpx

    with httpx.Client(verify=sim.tls()) as http:
        assert http.post(sim.rest_url + "/_sim/fault", json=body).status_code == 400


def raw_client(sim: Sim, path: str) -> ssl.SSLSocket:
    """Return a WebSocket that never answers: nobody reads it."""
    plain = socket.create_connection(("127.0.0.1", sim.port), timeout=10)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    secure = sim.tls().wrap_socket(plain, server_hostname="localhost")
    secure.sendall(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert secure.recv(12) == b"HTTP/1.1 101"
    return secure


async def test_clients_are_pinged_and_dropped_when_they_do_not_pong(tmp_path: Path) -> None:
    arguments = ["--ping-interval-s", "0.2", "--pong-timeout-s", "0.8"]
    with start_sim(tmp_path, rate=1, truth=False, arguments=arguments) as sim:
        silent = raw_client(sim, "/ws/ethusdt@trade")
        async with client(sim, "/ws/btcusdt@trade") as answering:
            await asked(eventually, lambda: sim.state()["counters"].get("pong_timeouts"), "the silent one is dropped")
            state = await asked(sim.state)
            assert [one["streams"] for one in state["connections"].values()] == [["btcusdt@trade"]]
            assert state["counters"]["pongs_received"] >= 2
            assert answering.close_code is None
        silent.close()


async def test_a_client_that_does_not_read_is_dropped_before_it_fills_the_memory(tmp_path: Path) -> None:
    arguments = ["--client-buffer-bytes", "4000000", "--channels", "trade"]
    with start_sim(tmp_path, rate=60_000, truth=False, arguments=arguments) as sim:
        process = psutil.Process(sim.process.pid)
        before = process.memory_info().rss
        slow = raw_client(sim, "/stream?streams=btcusdt@trade/ethusdt@trade/bnbusdt@trade")
        async with client(sim, "/stream?streams=btcusdt@trade") as reading:
            async with asyncio.timeout(30):
                while (await asked(sim.state))["counters"].get("slow_clients_dropped", 0) == 0:
                    await take(reading, 2000)
            assert contiguous(await take_ids(reading, 2000))
        assert process.memory_info().rss - before < 60_000_000
        slow.close()


async def test_the_truth_is_complete_after_sigterm_at_a_high_rate(tmp_path: Path) -> None:
    arguments = ["--frames", "60000", "--channels", "trade"]
    with start_sim(tmp_path, rate=40_000, symbols=("BTCUSDT", "ETHUSDT"), arguments=arguments) as sim:
        async with (
            client(sim, "/stream?streams=btcusdt@trade") as one,
            client(sim, "/ws/btcusdt@trade") as two,
        ):
            first, second = await asyncio.gather(take(one, 5000), take(two, 5000))
        await asked(eventually, lambda: not sim.state()["generating"], "the frames are generated")
        assert (await asked(sim.get, "/api/v3/time"))["serverTime"] > 0  # generating is over, REST is not
        assert sim.stop() == 0
    rows = pq.read_table(tmp_path / "truth.parquet")
    assert rows.num_rows == 60_000
    ids = [row["id"] for row in rows.to_pylist() if row["symbol"] == "BTCUSDT"]
    assert contiguous(ids)
    for got in ([frame["data"]["t"] for frame in first], [frame["t"] for frame in second]):
        assert contiguous(got)
        assert set(got) <= set(ids)
    assert sorted(os.listdir(tmp_path)) == ["ca", "sim.log", "truth.parquet"]


def test_sigint_ends_it_like_sigterm_and_the_port_can_be_taken_again(tmp_path: Path) -> None:
    """Trap 8: a stop signal is obeyed while idle, too."""
    with start_sim(tmp_path, rate=0.1) as sim:
        started = time.monotonic()
        sim.process.send_signal(signal.SIGINT)
        assert sim.process.wait(10) == 0
        assert time.monotonic() - started < 5
        assert (sim.truth or tmp_path).is_file()
    with start_sim(tmp_path, rate=10, port=sim.port) as again:
        assert again.port == sim.port
        assert again.state()["generating"]


def test_bursts_are_no_even_flow(tmp_path: Path) -> None:
    arguments = ["--burst", "--seconds", "3", "--channels", "trade"]
    with start_sim(tmp_path, rate=2000, arguments=arguments) as sim:
        deadline = time.monotonic() + 20
        while sim.state()["generating"] and time.monotonic() < deadline:
            time.sleep(0.1)
    times = pq.read_table(tmp_path / "truth.parquet", columns=["event_us"])["event_us"].to_numpy() // 10_000
    counts = sorted(int((times == ten_ms).sum()) for ten_ms in set(times.tolist()))
    assert counts[-1] > 5 * counts[len(counts) // 2]


def test_the_simulator_does_not_load_ray() -> None:
    code = (
        "import sys, k2ray.cli.sim, k2ray.sim.exchange, k2ray.sim.replay; print({'ray', 'fastapi'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
