"""`k2ray up`, `status`, `env` and `down` as a user runs them, against a simulated exchange."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from k2ray.lake.catalog import load_table, open_catalog
from k2ray.sim.audit import audit
from tests.support.eventually import eventually
from tests.support.sim import Sim, start_sim
from tests.support.system import System, a_system

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

FreePort = Callable[[], int]


def rows(system: System) -> list[dict[str, Any]]:
    answer = system.get("/v1/trades", exchange="binance", symbols="BTCUSDT", limit=5)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def test_up_records_and_answers_and_down_leaves_nothing(tmp_path: Path, free_port: FreePort) -> None:
    (tmp_path / "sim").mkdir()
    with (
        start_sim(tmp_path / "sim", rate=500) as sim,
        a_system(tmp_path / "system", sim, free_port()) as system,
    ):
        up = system.run("up")
        assert up.status == 0, up.err + up.out
        assert system.get("/ready").status_code == 200
        eventually(lambda: rows(system), "trades are in the answers")

        status = system.status()
        assert status["exit"] == 0, status
        assert (status["api"], status["level"]) == (f"http://127.0.0.1:{system.port}", 0)
        names = {actor["name"] for actor in status["actors"]}
        assert names == {
            "supervisor",
            "serializer#1",
            *(f"{name}#1" for name in ("feed:binance:0", "backfill:binance", "writer:trades", "writer:quotes")),
            "upkeep:trades#1",
            "upkeep:quotes#1",
        }
        feed = next(actor for actor in status["actors"] if actor["role"] == "feed")
        assert feed["rate"] > 0
        assert feed["rss_bytes"] < 250_000_000
        assert psutil.Process(feed["pid"]).nice() == psutil.Process().nice(), "it waits for nobody else's work"

        pids = {actor["name"]: actor["pid"] for actor in status["actors"]}
        few = {name for name, pid in pids.items() if psutil.Process(pid).environ().get("MALLOC_ARENA_MAX") == "2"}
        fast = {"feed:binance:0#1", "writer:trades#1", "writer:quotes#1"}
        assert few == names - fast, "who has many threads and little to do must not grow by their arenas"

        again = system.run("up")
        assert again.status == 0, again.err
        assert "runs" in again.out
        assert {actor["name"]: actor["pid"] for actor in system.status()["actors"]} == pids, "nobody was disturbed"

        env = system.run("env")
        assert f"export RAY_ADDRESS={status['ray']}" in env.out
        assert "RAY_AUTH_TOKEN_PATH" in env.out

        asked = {"symbols": "BTCUSDT", "last_id": rows(system)[0]["source_sequence"]}
        (complete,) = system.get("/v1/completeness", **asked).json()["data"]
        assert (complete["complete"], complete["proof"], complete["missing"]) == (True, "ids", [])
        shown = json.loads(system.run("gaps", "--json", "--symbols", "BTCUSDT").out)
        assert {row["channel"]: row["proof"] for row in shown} == {"trades": "ids", "quotes": "unproven"}

        rotated = system.run("rotate", "feed:binance:0")
        assert rotated.status == 0, rotated.err
        assert "the new connection delivers" in rotated.out
        nobody = system.run("rotate", "feed:binance:9")
        assert nobody.status != 0
        assert "no actor 'feed:binance:9' runs now; the feeds here are: feed:binance:0" in nobody.err

        # A dead actor shows as degraded or is back already; a dead broker comes back by itself.
        sim.stop()
        away = system.run("up")
        assert away.status == 0
        assert "feed:binance:0#1 is not connected: " in away.err
        assert "It goes on trying" in away.err

        started_s = time.monotonic()
        down = system.run("down")
        assert down.status == 0, down.err + down.out
        assert "Drain actors: drained" in down.out
        assert time.monotonic() - started_s < 60
        eventually(lambda: not system.processes(), "every process is gone", timeout_s=10)
        assert system.status()["exit"] == 2
        assert_exact(system, sim)


def assert_exact(system: System, sim: Sim) -> None:
    catalog = open_catalog(system.settings, system.layout)
    assert sim.truth is not None
    for name, channel in (("trades", "trade"), ("quotes", "bookTicker")):
        table = load_table(catalog, system.settings, name)
        assert table is not None
        result = audit(sim.truth, table, channel)
        assert result.sent > 0
        assert result.exact, result


def is_up(system: System) -> bool:
    return (system.layout.run / "up.json").exists()


def test_a_busy_api_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "k2ray.yaml").write_text(f"api: {{port: {port}}}\n")
        system = System(tmp_path, port, {})
        up = system.run("up")
    assert up.status == 1
    assert f"api.port: 127.0.0.1:{port}" in up.err
    assert "Traceback" not in up.err
    assert not system.processes()


def test_what_was_started_is_undone_when_a_later_step_fails(tmp_path: Path, free_port: FreePort) -> None:
    port, closed = free_port(), free_port()
    (tmp_path / "k2ray.yaml").write_text(
        f"api: {{port: {port}}}\nray: {{address: '127.0.0.1:{closed}'}}\nkafka: {{partitions: 2}}\n"
    )
    system = System(tmp_path, port, {})
    up = system.run("up")
    assert up.status == 1
    assert f"nothing listens at 127.0.0.1:{closed}" in up.err
    assert "Stop the broker" in up.out
    assert not system.processes()


@pytest.mark.parametrize("command", ["status", "down", "env", "deploy", "rollback"])
def test_commands_are_harmless_where_nothing_runs(tmp_path: Path, command: str) -> None:
    (tmp_path / "k2ray.yaml").write_text("{}\n")
    done = System(tmp_path, 1, {}).run(command)
    assert done.status == {"status": 2, "down": 0}.get(command, 1)
    assert "Traceback" not in done.err


def test_a_ray_that_was_started_first_is_joined_and_left_running(tmp_path: Path, free_port: FreePort) -> None:
    """`ray start` first, then `k2ray up --foreground` with ray.address: auto; SIGTERM while it idles ends it, promptly.

    Trap 8: SIGTERM was ignored while idle, since the inner loop never looked at the stop flag.
    """
    temp = Path(f"/tmp/k2t-{os.getpid()}")
    token = tmp_path / "token"
    token.write_text("1" * 64)
    base = free_port()
    environment = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={base}"]
    command += ["--include-dashboard=false", "--num-cpus=2", f"--temp-dir={temp}", "--object-store-memory=100000000"]
    command += ["--ray-client-server-port=" + str(free_port()), "--min-worker-port=28400", "--max-worker-port=28799"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONWARNINGS"))}
    log = (tmp_path / "ray.log").open("w")
    head = subprocess.Popen(command, env={**plain, **environment}, stdout=log, stderr=log, start_new_session=True)
    try:
        eventually(lambda: "Ray runtime started" in (tmp_path / "ray.log").read_text(), "Ray runs", timeout_s=60)
        (tmp_path / "sim").mkdir()
        # `auto` alone would take the newest `ray start` of the machine; RAY_ADDRESS keeps other tests' out.
        environment["RAY_ADDRESS"] = f"127.0.0.1:{base}"
        with (
            start_sim(tmp_path / "sim", rate=200) as sim,
            a_system(tmp_path / "system", sim, free_port(), environment, ray={"address": "auto"}) as system,
            system.popen("up", "--foreground") as process,
            contextlib.ExitStack() as stack,
        ):
            stack.callback(process.terminate)  # a failure below must not wait for it for ever
            eventually(lambda: process.poll() is not None or is_up(system), "it is up", timeout_s=180)
            assert process.poll() is None, process.communicate()
            eventually(lambda: rows(system), "trades are in the answers")
            assert system.status()["exit"] == 0
            sim.stop()
            eventually(lambda: records_nothing(system), "nothing comes any more: it idles")
            started_s = time.monotonic()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=90)
            assert process.returncode == 0, out + err
            assert "(joined)" in out
            assert "Drain actors: drained" in out
            assert "Stop Ray" not in out
            assert time.monotonic() - started_s < 45
            assert_exact(system, sim)
        assert head.poll() is None, "the joined Ray was left running"
    finally:
        head.terminate()
        head.wait(60)
        log.close()


def records_nothing(system: System) -> bool:
    feed = next(actor for actor in system.status()["actors"] if actor["role"] == "feed")
    return bool(feed["rate"] < 1)  # it falls off smoothly
