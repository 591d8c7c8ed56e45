"""Deploy, fail to deploy, roll back, and be killed meanwhile, all under load: no id and no HTTP answer is missing.

One system for all cases, brought up by the command, with trades at 2,000/s and clients that ask all the while. The
cases follow each other and each leaves the system healthy; answers are judged after every case, the ids of the whole at
the end. Every new release has code that differs by a file which only tests have.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from actors.history import History, read_history
from k2ray.lake.catalog import load_table, open_catalog
from k2ray.sim.audit import audit, data_files
from tests.support.code import copy_code
from tests.support.eventually import eventually
from tests.support.load import Report, load
from tests.support.sim import Sim, start_sim
from tests.support.system import Done, System, a_system

pytestmark = pytest.mark.timeout(1800)

FreePort = Callable[[], int]

RATE = 2_000
ASKED = ["/v1/trades?symbols=BTCUSDT&limit=5", "/health", "/ready", "/v1/status", "/v1/symbols"]
BAD_INIT = '    def __init__(self, data_dir: str) -> None:\n        raise RuntimeError("broken on purpose")\n'


@dataclass
class Stage:
    """A system that is deployed to.

    Attributes:
        system: It; its commands run from the code that it was brought up with.
        sim: The exchange.
        folder: For copies of the code.
    """

    system: System
    sim: Sim
    folder: Path

    def with_code(self, marker: str) -> System:
        """Return the system with its commands run from new code; the same marker is the same code."""
        folder = self.folder / marker
        if not folder.exists():
            copy_code(folder, marker, source=self.folder / "first")
        return dataclasses.replace(self.system, code=folder)

    def change(self, **sections: dict[str, Any]) -> None:
        """Change the settings file."""
        config = yaml.safe_load(self.system.config.read_text())
        for name, section in sections.items():
            config[name] = {**config.get(name, {}), **section}
        self.system.config.write_text(yaml.safe_dump(config))

    def exchange(self, **changes: Any) -> None:
        """Change the exchange's settings in the settings file."""
        config = yaml.safe_load(self.system.config.read_text())
        self.change(exchanges={"binance": {**config["exchanges"]["binance"], **changes}})

    @contextlib.contextmanager
    def unchanged_after(self) -> Iterator[None]:
        """Put the settings file back at the end."""
        before = self.system.config.read_text()
        yield
        self.system.config.write_text(before)

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Ask questions meanwhile; every one is answered."""
        with load(f"http://127.0.0.1:{self.system.port}", ASKED, clients=4, pause_s=0.1) as running:
            yield
            report: Report = running.stop()
        print(report)  # noqa: T201  shown with -s and on failure
        assert report.requests > 50
        assert report.failures == []

    def all_run(self, digest: str) -> dict[str, Any]:
        """Wait until the system is healthy; everything in it is of this release. Returns its status."""
        status = self.system.status()
        with contextlib.suppress(AssertionError):  # shown below, with what was seen
            eventually(lambda: status.update(self.system.status()) or status["exit"] == 0, "healthy", timeout_s=120)
        codes = {actor["name"]: actor["detail"]["code"] for actor in status["actors"]}
        codes["http"] = self.system.get("/health").json()["release"]
        assert set(codes.values()) == {digest}, codes
        assert (status["exit"], status["reasons"], status["release"]) == (0, [], digest)
        return status

    @property
    def history(self) -> History:
        return read_history(self.system.layout)

    @property
    def running(self) -> str:
        digest = self.history.running
        assert digest is not None
        return digest

    def is_at(self, beginning: str) -> bool:
        half = self.history.under_way
        return half is not None and half.step.startswith(beginning)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, free_port: FreePort) -> Iterator[Stage]:
    """Bring a system up; at the end, what the exchange sent is what the tables hold.

    The first test adds a symbol. Without it, that symbol is rightly found missing at the end.
    """
    folder = tmp_path_factory.mktemp("deploy")
    (folder / "sim").mkdir()
    first = copy_code(folder / "first", "first")
    policy = {"supervision": {"start_timeout_s": 120}, "deploy": {"watch_s": 2, "releases_kept": 9}}
    with (
        start_sim(folder / "sim", rate=RATE) as sim,
        a_system(folder / "system", sim, free_port(), **policy) as system,
    ):
        stage = Stage(dataclasses.replace(system, code=first), sim, folder)
        stage.exchange(symbols=["BTCUSDT", "ETHUSDT"])
        well(stage.system.run("up"))
        eventually(lambda: system.get("/v1/symbols").json()["data"], "rows are answered", timeout_s=180)
        yield stage
        sim.stop()
        well(stage.system.run("down"))
        assert_exact(stage)


def assert_exact(stage: Stage) -> None:
    catalog = open_catalog(stage.system.settings, stage.system.layout)
    assert stage.sim.truth is not None
    for name, channel in (("trades", "trade"), ("quotes", "bookTicker")):
        table = load_table(catalog, stage.system.settings, name)
        assert table is not None
        result = audit(stage.sim.truth, table, channel)
        print(result)  # noqa: T201
        assert result.sent > RATE
        assert result.exact, result
        # Not closed later by backfill, but never open.
        origins = duckdb.sql(f"SELECT DISTINCT origin FROM read_parquet({list(data_files(table))})").fetchall()
        assert origins == [("live",)]


def well(done: Done) -> Done:
    assert done.status == 0, done.out + done.err
    return done


@pytest.mark.chaos
def test_new_code_and_other_settings_take_over_and_nothing_is_missed(stage: Stage) -> None:
    """Traps 6 and 28: an overlap is proved by ids. The symbols are cut anew (1 connection -> 2) and one is added."""
    blue = stage.running
    stage.all_run(blue)
    stage.exchange(connections=2, symbols=["BTCUSDT", "ETHUSDT", "BNBUSDT"])
    with stage.asked():
        done = well(stage.with_code("second").run("deploy"))
    print(done.out)  # noqa: T201
    assert stage.running != blue
    status = stage.all_run(stage.running)
    assert {"feed:binance:0#2", "feed:binance:1#1"} <= {actor["name"] for actor in status["actors"]}


@pytest.mark.chaos_full
def test_a_rollback_runs_the_old_code_although_what_is_installed_has_moved_on(stage: Stage) -> None:
    blue = stage.running
    with stage.unchanged_after(), stage.asked():
        stage.change(lake={"commit": {"interval_s": 2}})
        other = stage.with_code("other")
        dry = well(other.run("deploy", "--dry-run"))
        assert "lake.commit.interval_s: 1.0 -> 2.0" in dry.out
        assert "would start beside the old: " in dry.out
        assert stage.running == blue
        with stage.unchanged_after():
            stage.change(kafka={"partitions": 8})
            refused = other.run("deploy")
        assert refused.status == 1
        assert "kafka.partitions: is chosen once" in refused.err
        well(other.run("deploy"))
        green = stage.running
        assert green != blue
        stage.all_run(green)
        shutil.rmtree(stage.folder / "second", ignore_errors=True)  # its code exists in the release alone
        back = well(other.run("rollback"))
    print(back.out)  # noqa: T201
    stage.all_run(blue)
    assert [(one.kind, one.digest, one.state) for one in stage.history.deployments[-2:]] == [
        ("deploy", green, "rolled back"),
        ("rollback", blue, "running"),
    ]


@pytest.mark.chaos_full
def test_a_release_whose_feed_never_delivers_is_taken_back(stage: Stage, free_port: FreePort) -> None:
    blue = stage.running
    before = {actor["name"]: actor["pid"] for actor in stage.all_run(blue)["actors"] if actor["role"] == "feed"}
    with stage.unchanged_after(), stage.asked():
        stage.exchange(ws_url=f"wss://127.0.0.1:{free_port()}")
        done = stage.system.run("deploy")
        print(done.out, done.err)  # noqa: T201
        assert done.status == 1
        assert f"rolled back to release {blue}" in done.err
        assert "feed:binance:" in done.err
        up = stage.system.run("up")
        assert (up.status, "k2ray deploy" in up.err) == (1, True)
    after = stage.all_run(blue)["actors"]
    assert {actor["name"]: actor["pid"] for actor in after if actor["role"] == "feed"} == before, "never touched"
    assert stage.history.deployments[-1].state == "failed"


@pytest.mark.chaos_full
@pytest.mark.parametrize(
    ("path", "named"),
    [("actors/feed.py", "feed:"), ("k2ray/lake/writer.py", "writer:"), ("serve/market.py", "HTTP"), ("", "supervisor")],
    ids=["feed", "writer", "http", "supervisor"],
)
def test_code_that_cannot_run_is_taken_back(path: str, named: str, stage: Stage) -> None:
    blue = stage.running
    broken = stage.with_code(f"broken-{named.strip(':')}")
    assert broken.code is not None
    if path:
        (broken.code / path).write_text('raise RuntimeError("broken on purpose")\n')
    else:  # the command must run: only its actor fails
        supervisor = broken.code / "actors/supervisor.py"
        text = supervisor.read_text().replace("    def __init__(self, data_dir: str) -> None:\n", BAD_INIT)
        assert text != supervisor.read_text()
        supervisor.write_text(text)
    with stage.asked():
        done = broken.run("deploy")
    print(done.out, done.err)  # noqa: T201
    assert done.status == 1
    assert f"rolled back to release {blue}" in done.err
    assert named in done.err
    stage.all_run(blue)


@pytest.mark.chaos_full
@pytest.mark.parametrize("ends_by", ["deploy", "rollback"])
def test_a_deploy_that_was_killed_is_explained_and_completed_or_taken_back(ends_by: str, stage: Stage) -> None:
    blue = stage.running
    system = stage.with_code(f"killed-{ends_by}")
    with stage.asked():
        with system.popen("deploy") as process:
            eventually(lambda: stage.is_at("start beside the old: f") or process.poll(), "feeds start", timeout_s=400)
            assert process.poll() is None, process.communicate()
            process.send_signal(signal.SIGKILL)
            process.wait()
        status = stage.system.status()
        assert status["exit"] == 1
        assert "was left half-way at: start beside the old: feed" in "; ".join(status["reasons"])
        assert status["deployment"]["at_work"] is False
        well(system.run(ends_by))
    assert (stage.running == blue) is (ends_by == "rollback")
    stage.all_run(stage.running)


@pytest.mark.chaos_full
def test_a_supervisor_killed_during_a_deployment_goes_on_with_it(stage: Stage) -> None:
    with stage.asked(), stage.with_code("fresh").popen("deploy") as process:
        for moment in ("start beside the old: w", "start beside the old: f"):
            seen = [moment]
            eventually(lambda seen=seen: stage.is_at(seen[0]) or process.poll(), moment, timeout_s=400)  # type: ignore[misc]
            remembered = json.loads((stage.system.layout.run / "supervisor.json").read_text())
            os.kill(remembered["pid"], signal.SIGKILL)
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, out + err
    stage.all_run(stage.running)
