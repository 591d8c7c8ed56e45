"""`make demo` as a person uses it: it runs, Ctrl-C ends it with a proof, and it leaves nothing running."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def test_the_demo_answers_its_questions_and_ctrl_c_ends_it_with_a_proof(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "k2ray.cli", "demo", "--port", str(port), "--data-dir", str(tmp_path / "demo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        shown = []
        for line in demo.stdout:
            shown.append(line)
            if "/v1/status" in line:
                break
        questions = [line.split("'")[1] for line in shown if "curl -s" in line]
        answers = [httpx.get(question, timeout=30) for question in questions]
        demo.send_signal(signal.SIGINT)
        shown += demo.stdout.readlines()
        status = demo.wait(200)
    output = "".join(shown)
    assert len(questions) == 3, output
    assert [answer.status_code for answer in answers] == [200, 200, 200], [answer.text for answer in answers]
    assert status == 0, output
    assert "exact" in output
    assert "NOT exact" not in output
    mark = str(tmp_path / "demo")
    assert [process.info for process in psutil.process_iter(["pid", "cmdline"]) if mark in str(process.info)] == []
