"""The built wheel works by itself: installed into an empty environment, away from the repository."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]
# The first install fetches Ray and pyarrow; later ones take them from pip's cache.
INSTALL_S = 600
COMMAND_S = 180


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `k2ray` command of an environment that holds the wheel and what it declares, nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=COMMAND_S)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    install = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet"]
    # Compiling all of Ray takes a third of the time; what is imported is compiled then.
    install += ["--no-compile", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=INSTALL_S, cwd=folder)
    return environment / "bin" / "k2ray"


@pytest.fixture
def simulator(installed: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run the wheel's own simulated exchange; its addresses."""
    command = [str(installed), "sim", "--rate", "200", "--ca-dir", str(tmp_path / "ca"), "--symbols", "BTCUSDT,ETHUSDT"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=_environment())
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], COMMAND_S)
        assert ready, "the simulator said nothing"
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.integration
@pytest.mark.timeout(INSTALL_S + 3 * COMMAND_S)
def test_the_wheel_runs_up_a_query_and_down(
    installed: Path, simulator: dict[str, str], tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    (tmp_path / "k2ray.yaml").write_text(
        json.dumps(
            {
                "data_dir": "./data",
                "tls": {"ca_file": simulator["ca_file"]},
                "ray": {"dashboard": False},
                "exchanges": {
                    "binance": {
                        "ws_url": simulator["ws_url"],
                        "rest_url": simulator["rest_url"],
                        "symbols": ["BTCUSDT", "ETHUSDT"],
                    }
                },
                "lake": {"commit": {"interval_s": 1}},
                "api": {"port": port},
            }
        )
    )
    try:
        _run(installed, "up", tmp_path)
        url = f"http://127.0.0.1:{port}/v1/trades"

        def stored() -> list[dict[str, object]]:
            answer = httpx.get(url, params={"exchange": "binance", "symbols": "BTCUSDT", "limit": 5}, timeout=20)
            assert answer.status_code == 200, answer.text
            rows: list[dict[str, object]] = answer.json()["data"]
            return rows

        rows = eventually(stored, "rows in the answer", timeout_s=60)
        assert rows[0]["symbol"] == "BTCUSDT"
        assert isinstance(rows[0]["price"], str)
    finally:
        down = _run(installed, "down", tmp_path, check=False)
    assert down.returncode == 0, down.stdout + down.stderr


@pytest.mark.integration
@pytest.mark.timeout(INSTALL_S + COMMAND_S)
def test_the_wheel_brings_its_alerts_and_dashboards(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "k2ray.yaml").write_text("{}\n")
    command = [str(installed), "monitoring", "watch"]
    done = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, timeout=COMMAND_S)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "watch" / "k2ray.rules.yml").exists()
    assert list((tmp_path / "watch" / "grafana" / "dashboards").glob("*.json"))
    assert list((tmp_path / "watch" / "docs" / "runbook").glob("*.md"))


def _environment() -> dict[str, str]:
    """The process's environment without what would lead back to the repository."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}


def _run(k2ray: Path, command: str, folder: Path, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(k2ray), command], cwd=folder, env=_environment(), capture_output=True, text=True, timeout=COMMAND_S
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done
