"""The API on a real Ray Serve: both ways to start it, streaming, and health while queries run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from tests.support.arena import replica_pids
from tests.support.code import copy_code
from tests.support.eventually import eventually
from tests.support.market_tables import MarketTables, trade
from tests.support.ray_cluster import SmallCluster

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> MarketTables:
    found = MarketTables(tmp_path_factory.mktemp("serve"))
    for start in range(0, 20_000, 10_000):
        found.append("trades", [trade(n, price="0.00012345") for n in range(start, start + 10_000)])
    found.create("quotes")
    return found


@pytest.fixture(scope="module")
def serving(ray: SmallCluster, free_port: Callable[[], int]) -> Iterator[str]:
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@contextlib.contextmanager
def deployed(url: str, **args: Any) -> Iterator[httpx.Client]:
    from ray import serve

    from serve.app import app

    serve.run(app(args), name="query-test", route_prefix="/", blocking=False)
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            eventually(lambda: client.get("/health").status_code == 200, "the replica answers")
            yield client
    finally:
        serve.delete("query-test")


def test_questions_are_answered_through_serve(serving: str, tables: MarketTables) -> None:
    with deployed(serving, settings=tables.settings.to_json()) as client:
        found = client.get("/v1/trades", params={"symbols": "BTCUSDT", "limit": 2}).json()
        assert [row["price"] for row in found["data"]] == ["0.00012345"] * 2
        whole = client.get("/v1/trades", params={"limit": 20_000})
        assert [row["source_sequence"] for row in whole.json()["data"]] == list(range(20_000))
        arrow = client.get("/v1/trades", params={"limit": 20_000, "format": "arrow"})
        assert pa.ipc.open_stream(arrow.content).read_all().num_rows == 20_000
        bars = client.get("/v1/bars", params={"interval": "1h"}).json()["data"]
        assert sum(bar["count"] for bar in bars) == 20_000
        wrong = client.get("/v1/trades", params={"limit": 0})
        assert (wrong.status_code, wrong.headers["content-type"]) == (400, "application/problem+json")
        # No supervisor lives in this namespace: questions are answered, but the system is not ready.
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["tables"]) == (503, "ok")
        assert client.get("/v1/status").status_code == 503
        assert "k2ray_http_requests_total" in client.get("/metrics").text
        log = next(tables.layout.logs.glob("api-*.jsonl"))
        assert log.exists()


def test_the_builder_takes_a_config_file(serving: str, tables: MarketTables, tmp_path: Path) -> None:
    config = tmp_path / "k2ray.yaml"
    config.write_text(f"data_dir: {tables.settings.data_dir}\n")
    with deployed(serving, config=str(config)) as client:
        assert client.get("/v1/symbols").json()["data"][0]["rows"] == 20_000


def test_replicas_run_their_release_and_more_of_them_leave_the_first_alone(
    serving: str, tables: MarketTables, tmp_path: Path
) -> None:
    """Holds Ray to what an update without a gap counts on: a version of ours, which has no public way in."""
    from ray import serve

    from serve.app import app

    code = copy_code(tmp_path / "0123456789ab", "served")
    (code / "release.json").write_text("{}")
    args = {"settings": tables.settings.to_json(), "code": str(code)}
    with deployed(serving, **args) as client:
        assert client.get("/health").json()["release"] == "0123456789ab"
        (first,) = replica_pids("query-test")
        for replicas in (2, 1):
            serve.run(app({**args, "replicas": replicas}), name="query-test", route_prefix="/", blocking=False)
            pids = eventually(
                lambda count=replicas: len(found := replica_pids("query-test")) == count and found,
                f"{replicas} replicas run",
                timeout_s=60,
            )
            assert first in pids or replicas == 1
        assert client.get("/health").status_code == 200


def test_serve_run_takes_a_config_file(ray: SmallCluster, serving: str, tables: MarketTables, tmp_path: Path) -> None:
    """The command itself, with the variables that `k2ray env` prints and nothing else of ours in its environment."""
    from ray import serve

    # A relative path in the file counts from the file's own folder, wherever the command is run.
    config = tables.settings.data_dir / "k2ray.yaml"
    config.write_text("data_dir: .\n")
    program = Path(sys.executable).with_name("serve")
    options = ["--non-blocking", "--name", "from-command", "--route-prefix", "/"]
    command = [str(program), "run", *options, "serve.app:app", f"config={config}"]
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment = {**kept, "RAY_ADDRESS": ray.address, **ray.cluster.environment()}
    try:
        done = subprocess.run(
            command, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stdout + done.stderr
        with httpx.Client(base_url=serving, timeout=30) as client:
            eventually(lambda: client.get("/health").status_code == 200, "the replica answers")
            assert client.get("/v1/symbols").json()["data"][0]["rows"] == 20_000
    finally:
        serve.delete("from-command")


def test_an_unknown_argument_of_the_builder_is_refused() -> None:
    from k2ray.errors import SettingsError
    from serve.app import app

    with pytest.raises(SettingsError, match="confg"):
        app({"confg": "x"})
