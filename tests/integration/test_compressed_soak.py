"""A day's schedule in less than two minutes: real system, real sockets; only schedules are shorter, no timeout is."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from k2ray.soak.samples import read_samples

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

COMPRESS = 800
PINGS_A_DAY = 480


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> tuple[Path, int, str]:
    """Run it once: its folder, exit status and output."""
    folder = tmp_path_factory.mktemp("soak") / "run"
    command = [
        sys.executable,
        "-m",
        "k2ray.cli",
        "soak",
        "--hours",
        "24",
        "--compress",
        str(COMPRESS),
        "--sample-s",
        "2",
    ]
    command += ["--no-quotes", "--rate", "300", "--data-dir", str(folder), "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    return folder, done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def report(ran: tuple[Path, int, str]) -> dict[str, Any]:
    folder, _, output = ran
    file = folder / "report.json"
    assert file.exists(), output
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["outcome"] for check in report["checks"]}


def test_a_day_of_rotations_a_notice_and_a_cut_loses_and_doubles_nothing(
    report: dict[str, Any], ran: tuple[Path, int, str]
) -> None:
    output = ran[2]
    (trades,) = report["compared"]
    assert trades["sent"] > 30_000, output
    assert (trades["lost"], trades["duplicated"], trades["invented"]) == (0, 0, 0), output
    (table,) = report["tables"]
    assert (table["duplicated"], table["missing"], table["holes"]) == (0, 0, []), output


def test_the_schedule_was_kept(report: dict[str, Any]) -> None:
    rotations = report["rotations"]
    assert sum(rotations.values()) >= 6, rotations
    assert rotations["shutdown"] >= 1, rotations
    assert report["reconnects"] >= 1, "the cut as at 24 h"
    found = outcomes(report)
    assert found["rotations"] == "passed", report["checks"]
    assert found["pings"] == "passed", report["checks"]
    pings = next(check for check in report["checks"] if check["name"] == "pings")
    assert int(pings["wanted"].split(",")[0]) == pytest.approx(PINGS_A_DAY, abs=10)


def test_two_minutes_prove_no_growth_and_the_verdict_says_so(
    report: dict[str, Any], ran: tuple[Path, int, str]
) -> None:
    """Trap 28: a soak was declared done without having run."""
    found = outcomes(report)
    assert found["memory growth"] == "not proven"
    assert {found[name] for name in ("duration", "rate", "lost", "duplicated", "memory limit")} == {"passed"}
    assert "failed" not in found.values(), report["checks"]
    assert report["verdict"] == "not proven"
    assert ran[1] == 2, ran[2]
    assert report["ran_s"] == pytest.approx(24 * 3600 / COMPRESS, abs=1)


def test_the_same_report_can_be_made_of_what_the_system_wrote_down_itself(
    report: dict[str, Any], ran: tuple[Path, int, str]
) -> None:
    folder = ran[0]
    since = datetime.datetime.strptime(report["since"], "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=datetime.UTC)
    samples = read_samples(folder / "data" / "logs", since.timestamp() - 60, since.timestamp() + 600)
    assert {"feed", "writer", "supervisor"} <= {actor.role for sample in samples for actor in sample.actors}
    command = [sys.executable, "-m", "k2ray.cli", "validate", "--config", str(folder / "k2ray.yaml"), "--since"]
    command += [(since + datetime.timedelta(seconds=1)).isoformat(), "--out", str(folder / "validation")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    found = json.loads((folder / "validation" / "report.json").read_text())
    assert done.returncode == 2, done.stdout + done.stderr
    assert outcomes(found)["lost"] == outcomes(found)["duplicated"] == "passed", found["checks"]
    assert found["verdict"] == "not proven"
    assert "<svg" in (folder / "validation" / "report.html").read_text()


def test_nothing_of_it_runs_any_more(ran: tuple[Path, int, str]) -> None:
    mark = str(ran[0])
    assert [process.info for process in psutil.process_iter(["pid", "cmdline"]) if mark in str(process.info)] == []
