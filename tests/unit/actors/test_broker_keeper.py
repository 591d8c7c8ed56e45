from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors import broker_keeper
from actors.broker_keeper import LOOK_INTERVAL_S, BrokerKeeper
from k2ray.layout import DataDir
from tests.support.eventually import eventually


class Desk:
    """A keeper of a broker that is this or that process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state, self.pid = "running", os.getpid()
        self.looks = self.starts = 0
        monkeypatch.setattr(broker_keeper, "LocalBroker", lambda *_: self)
        monkeypatch.setattr(broker_keeper.subprocess, "run", self._run)
        self.keeper = BrokerKeeper(DataDir(folder), 1)

    def status(self) -> SimpleNamespace:
        self.looks += 1
        return SimpleNamespace(state=self.state, address=SimpleNamespace(pid=self.pid))

    def _run(self, *_: object, **__: object) -> SimpleNamespace:
        self.starts += 1
        return SimpleNamespace(returncode=1, stderr="no java")

    def tick(self, now_s: float) -> int:
        """Turn once, wait for the look if there is one, and return how many there were so far."""
        self.keeper.tick(now_s)
        thread = self.keeper._thread
        assert thread is not None
        eventually(lambda: not thread.is_alive(), "the look ends")
        return self.looks


def test_a_broker_that_is_there_is_looked_at_once_an_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path, monkeypatch)
    assert [desk.tick(at) for at in (0.0, 0.25, 0.5, LOOK_INTERVAL_S, LOOK_INTERVAL_S + 0.25)] == [1, 1, 1, 2, 2]
    assert desk.starts == 0


def test_a_broker_that_died_is_started_at_the_next_turn_and_then_with_backoff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, monkeypatch)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        desk.pid = process.pid
        assert desk.tick(0.0) == 1
        process.kill()
    desk.state = "stopped"
    assert desk.tick(0.25) == 2
    assert desk.starts == 1
    assert desk.keeper.status()["last_reason"] == "no java"
    assert [desk.tick(at) for at in (0.5, 0.75, 1.0)] == [2, 2, 2], "a start that failed is not repeated at every turn"
    assert desk.tick(30.0) == 3
    assert desk.starts == 2
