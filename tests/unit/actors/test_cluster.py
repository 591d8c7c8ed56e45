from __future__ import annotations

import json
import os
import random
import socket
import stat
import sys
from pathlib import Path

import pytest
import yaml

from actors.cluster import _READY, RayCluster
from actors.ports import find_free_block
from actors.ray_environment import head_environment
from k2ray.errors import RayUnavailable
from k2ray.layout import DataDir
from k2ray.settings import load_settings

ROOT = Path(__file__).resolve().parents[3]


def cluster(folder: Path, **ray: object) -> RayCluster:
    settings = load_settings(arguments={"data_dir": str(folder), "ray": ray}, environ={})
    return RayCluster(settings, DataDir(settings.data_dir))


def write_address(folder: Path, **address: object) -> None:
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "ray.json").write_text(json.dumps(address))


def test_the_cluster_launcher_file_passes_rays_own_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert config["provider"]["type"] == "local"
    prepared = prepare_config(config)
    prepared["cluster_synced_files"] = []
    validate_config(prepared)


def test_the_cluster_launcher_file_never_stops_other_rays() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    commands = [command for key, value in config.items() if key.endswith("_commands") for command in value]
    assert not any("ray stop" in command for command in commands)


def test_our_own_ray_is_loopback_with_a_token_and_without_reports() -> None:
    variables = cluster(Path("/data")).environment(base_port=20_000)
    assert variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["RAY_AUTH_TOKEN_PATH"] == "/data/run/ray-token"
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"


def test_two_systems_share_no_proxy_file_or_port() -> None:
    one = cluster(Path("/one")).environment(base_port=20_000)
    two = cluster(Path("/two")).environment(base_port=20_400)
    names = {name for name in one if name.startswith("RAY_SERVE_") and not one[name].isdigit()}
    names |= {name for name in one if name.endswith("_PORT")}
    names -= {"RAY_SERVE_HAPROXY_RETRY_ON"}  # neither a file nor a port
    assert len(names) == 10
    assert not [name for name in names if one[name] == two[name]]


def test_a_joined_ray_gets_none_of_our_variables() -> None:
    assert cluster(Path("/data"), address="auto").environment() == {}


def test_the_heads_environment_is_not_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("K2RAY_API__PORT", "1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    variables = head_environment(os.environ, {"RAY_AUTH_MODE": "token"}, watch_memory=False)
    assert not {"PYTHONWARNINGS", "K2RAY_API__PORT", "RAY_ADDRESS"} & variables.keys()
    assert variables["PATH"] == os.environ["PATH"]
    assert (variables["RAY_AUTH_MODE"], variables["RAY_memory_monitor_refresh_ms"]) == ("token", "0")


def test_the_token_is_for_this_user_alone_and_is_kept(tmp_path: Path) -> None:
    one = cluster(tmp_path)
    one._make_token()
    path = tmp_path / "run" / "ray-token"
    token = path.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    one._make_token()
    assert path.read_text() == token


def test_a_ports_block_is_free_and_outside_other_clusters_workers() -> None:
    first = find_free_block(random.Random(1))
    assert 20_000 <= first < 30_000
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        assert find_free_block(random.Random(1)) != first


class Heads(RayCluster):
    """A cluster whose heads end at once, but for the last one."""

    def __init__(self, folder: Path, bad: int) -> None:
        settings = load_settings(arguments={"data_dir": str(folder)}, environ={})
        super().__init__(settings, DataDir(settings.data_dir), haproxy=False)
        self.bad = bad
        self.ports: list[int] = []

    def _command(self, base_port: int) -> list[str]:
        self.ports.append(base_port)
        good = f"import time; print({_READY!r}, flush=True); time.sleep(100)"
        return [sys.executable, "-c", "raise SystemExit('no port')" if len(self.ports) <= self.bad else good]


def test_a_head_that_ended_is_started_again_with_other_ports(tmp_path: Path) -> None:
    """Between the look for a free port and its use another program may take it."""
    heads = Heads(tmp_path, bad=2)
    address = heads.start()
    assert heads._process is not None
    heads._process.kill()
    heads._process.wait()
    assert len(heads.ports) == 3
    assert (address.base_port, address.address) == (heads.ports[-1], f"127.0.0.1:{heads.ports[-1]}")
    assert heads.known() == address


def test_heads_that_go_on_ending_are_given_up_with_their_reason(tmp_path: Path) -> None:
    heads = Heads(tmp_path, bad=9)
    with pytest.raises(RayUnavailable, match="no port"):
        heads.start()
    assert len(heads.ports) == 3
    assert heads.known() is None


def test_a_pid_that_is_not_our_head_is_never_stopped(tmp_path: Path) -> None:
    write_address(tmp_path, address="127.0.0.1:1", own=True, pid=os.getpid())
    assert cluster(tmp_path).running() is None
    assert cluster(tmp_path).stop() is False
    assert not (tmp_path / "run" / "ray.json").exists()


def test_a_joined_ray_is_never_stopped(tmp_path: Path) -> None:
    write_address(tmp_path, address="127.0.0.1:1", own=False)
    assert cluster(tmp_path, address="127.0.0.1:1").stop() is False


def test_an_address_where_nothing_listens_is_named_at_once(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(RayUnavailable, match=f"nothing listens at 127.0.0.1:{port}"):
            cluster(tmp_path, address=f"127.0.0.1:{port}").connect(1)


def test_a_head_that_does_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RayUnavailable, match="k2ray up"):
        cluster(tmp_path).connect(1)
