"""Joining a Ray that somebody else started: reached by address or `auto`, refused with a reason, never stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ray_cluster import ROOT, SmallCluster

pytestmark = pytest.mark.integration

JOIN = """
import sys
from pathlib import Path
from actors.cluster import RayCluster
from k2ray.errors import RayUnavailable
from k2ray.layout import DataDir
from k2ray.settings import load_settings
settings = load_settings(arguments={"data_dir": sys.argv[1], "ray": {"address": sys.argv[2]}}, environ={})
cluster = RayCluster(settings, DataDir(settings.data_dir))
try:
    known = cluster.connect()
except RayUnavailable as error:
    print("refused:", error)
else:
    print("joined:", known.address, known.own, cluster.stop())
"""


def join(data_dir: Path, address: str, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", **variables}
    command = [sys.executable, "-c", JOIN, str(data_dir), address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("way", ["address", "auto"])
def test_a_running_ray_is_joined_and_never_stopped(ray: SmallCluster, tmp_path: Path, way: str) -> None:
    target = ray.address if way == "address" else "auto"
    assert join(tmp_path, target, RAY_ADDRESS=ray.address) == f"joined: {ray.address} False False"
    assert ray.cluster.running() is not None


def test_a_wrong_token_is_named(ray: SmallCluster, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    said = join(tmp_path, ray.address, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert said.startswith("refused:")
    assert "token is refused or missing" in said
    assert str(wrong) in said


def test_a_missing_token_is_named(ray: SmallCluster, tmp_path: Path) -> None:
    said = join(tmp_path, ray.address, RAY_AUTH_TOKEN_PATH=str(tmp_path / "nowhere"))
    assert said.startswith("refused:")
    assert "token" in said
