"""What of the local broker can be tested without one."""

from __future__ import annotations

import subprocess
import sys
import uuid

import psutil
import pytest

from k2ray.log.broker import _await_command_line, new_cluster_id


def test_a_cluster_id_is_never_taken_for_an_option() -> None:
    """Kafka's storage tool refused to format where the id began with a dash: one start of 64 failed."""
    dashed = uuid.UUID(bytes=b"\xf8" + bytes(15))
    draws = iter([dashed, uuid.UUID(int=1)])
    assert new_cluster_id(lambda: next(draws)) == "AAAAAAAAAAAAAAAAAAAAAQ"
    assert all(not new_cluster_id().startswith("-") and len(new_cluster_id()) == 22 for _ in range(300))


def test_a_process_is_asked_for_its_command_line_until_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a broker's start failed: the kernel had not yet set the command line by which it is known."""
    answers = iter([[], [], ["java"]])
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _process: next(answers))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        _await_command_line(child)
        assert list(answers) == [], "asked until it had one"


def test_a_process_that_ended_at_once_is_not_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
        _await_command_line(child)
