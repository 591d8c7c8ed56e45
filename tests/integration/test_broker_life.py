"""The local broker's life: start, adopt, die, come back at the same address, stop. And its command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from k2ray.cli.broker import app
from k2ray.errors import MissingProgram, OperatorNeeded
from k2ray.layout import DataDir
from k2ray.log.broker import BrokerAddress, LocalBroker
from k2ray.log.consumer import LogReader
from tests.support.kafka import TestBroker

pytestmark = pytest.mark.integration


@pytest.fixture
def own(tmp_path: Path, broker: TestBroker) -> Iterator[LocalBroker]:
    """A broker of the test's own, not yet started (the session's one has proved that java is there)."""
    mine = LocalBroker(DataDir(tmp_path / "data with space"))
    yield mine
    mine.stop()


def kill(address: BrokerAddress) -> None:
    process = psutil.Process(address.pid)
    process.send_signal(signal.SIGKILL)


def test_a_broker_is_started_once_and_survives_its_own_death(own: LocalBroker, tmp_path: Path) -> None:
    assert own.status().state == "stopped"
    assert not own.stop()
    first = own.start()
    assert first.bootstrap.startswith("127.0.0.1:")
    assert not first.adopted
    again = LocalBroker(DataDir(tmp_path / "data with space")).start()
    assert (again.pid, again.bootstrap, again.adopted) == (first.pid, first.bootstrap, True)
    status = own.status()
    assert status.state == "running"
    assert 50e6 < status.rss_bytes < 700e6
    assert os.getsid(first.pid) == first.pid, "Ctrl-C at the terminal must not reach it"
    listening = {item.laddr.ip for item in psutil.Process(first.pid).net_connections() if item.status == "LISTEN"}
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}

    kill(first)
    began = time.monotonic()
    second = own.start()
    assert (second.bootstrap, second.cluster_id) == (first.bootstrap, first.cluster_id)
    assert second.pid != first.pid
    assert time.monotonic() - began < 40
    reader = LogReader(second.bootstrap)
    assert reader.cluster([]).cluster_id == first.cluster_id
    reader.close()
    assert (tmp_path / "data with space/logs/kafka.log").stat().st_size > 0

    assert own.stop()
    assert own.status().state == "stopped"
    assert not psutil.pid_exists(second.pid)


def test_another_process_with_the_remembered_pid_is_left_alone(own: LocalBroker, tmp_path: Path) -> None:
    """A pid is reused sooner or later; stop must not kill a stranger."""
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        known = BrokerAddress("127.0.0.1:29999", stranger.pid, "127.0.0.1:29998", "x")
        folder = tmp_path / "data with space" / "broker"
        folder.mkdir(parents=True)
        (folder / "broker.json").write_text(json.dumps(known.__dict__))
        assert own.status().state == "stopped"
        assert not own.stop()
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n", timeout=10)


def test_an_unreadable_note_of_the_broker_needs_a_person(own: LocalBroker, tmp_path: Path) -> None:
    folder = tmp_path / "data with space" / "broker"
    folder.mkdir(parents=True)
    (folder / "broker.json").write_text("{")
    with pytest.raises(OperatorNeeded, match=r"broker\.json"):
        own.start()
    (folder / "broker.json").unlink()


def test_a_broker_that_ignores_sigterm_is_killed(broker: TestBroker) -> None:
    """Stopped by a debugger it cannot even handle SIGTERM. (Uses and restarts the session's broker.)"""
    pid = broker.broker.start().pid
    os.kill(pid, signal.SIGSTOP)
    assert broker.broker.status(timeout_s=0.5).state == "silent"
    assert broker.broker.stop(timeout_s=0.5)
    assert not psutil.pid_exists(pid)
    assert broker.broker.start().bootstrap == broker.bootstrap


def test_without_java_the_start_says_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(MissingProgram, match=r"java was not found.*kafka\.bootstrap_servers"):
        LocalBroker(DataDir(tmp_path), environ={"PATH": str(tmp_path)}).start()


def test_the_command_line_says_what_is(broker: TestBroker, tmp_path: Path) -> None:
    runner = CliRunner()
    root = broker.broker._layout.root
    ours = tmp_path / "ours.yaml"
    ours.write_text(f"data_dir: {root}\n")
    new = tmp_path / "new.yaml"
    new.write_text("data_dir: nothing-yet\n")
    foreign = tmp_path / "foreign.yaml"
    foreign.write_text("kafka: {bootstrap_servers: 'kafka.example:9092'}\n")

    started = runner.invoke(app, ["start", "--config", str(ours)])
    assert (started.exit_code, "runs already at " + broker.bootstrap in started.output.replace("\n", "")) == (0, True)
    status = runner.invoke(app, ["status", "--json", "--config", str(ours)])
    assert status.exit_code == 0
    assert json.loads(status.output)["address"]["bootstrap"] == broker.bootstrap

    status = runner.invoke(app, ["status", "--config", str(new)])
    assert (status.exit_code, "never started" in status.output) == (2, True)
    stopped = runner.invoke(app, ["stop", "--config", str(new)])
    assert (stopped.exit_code, "No local Kafka" in stopped.output) == (0, True)
    missing = runner.invoke(app, ["start", "--config", str(new)], env={"PATH": str(tmp_path), "JAVA_HOME": ""})
    assert missing.exit_code == 1
    assert "kafka.bootstrap_servers" in missing.stderr.replace("\n", "")

    refused = runner.invoke(app, ["start", "--config", str(foreign)])
    assert refused.exit_code == 1
    assert "not ours to start" in refused.stderr.replace("\n", " ")
