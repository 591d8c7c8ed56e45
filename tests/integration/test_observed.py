"""A running system seen from outside: one scrape, every panel, Ray's view, `status`, and what stays when parts hang.

One system for all tests of this file, with two replicas; they run in their order, the last ones break things.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from k2ray.cli.monitoring import RAY_TARGETS
from tests.support.alert_cases import CASES, healthy
from tests.support.crafted import crafted_systems
from tests.support.dashboards import Query, queries
from tests.support.eventually import eventually
from tests.support.prometheus import Programs, Prometheus, running_prometheus
from tests.support.rules import RULES
from tests.support.sim import Sim, start_sim
from tests.support.system import System, a_system

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

Sample = tuple[str, frozenset[tuple[str, str]]]

NEEDS_A_FAULT = {
    "feeds: Dead letters",
    "feeds: Refused by Kafka",
    "feeds: Request weight left",
    "feeds: Rows fetched",
    "feeds: Rows shed",
    "feeds: Told to wait",
    "feeds: What became of gaps",
    "feeds: Backfill's questions",
    "lake: Compactions",
    "lake: Orphans removed",
    "lake: Rows compacted",
    "lake: Snapshots expired",
    "lake: Tried again",
    "lake: Unstorable",
    "lake: What should not happen",
    "overview: Alerts that fire",
    "system: Replacements",
    "system: Restarts",
    "system: Schemas evicted",
    "system: Sent as Arrow for want of a schema",
}
"""Panels whose series a system that runs well for a minute need not have; they are asked on crafted ones."""


@dataclass(frozen=True)
class Observed:
    """The system, its exchange, and a Prometheus that scrapes it."""

    system: System
    sim: Sim
    prometheus: Prometheus

    @property
    def instance(self) -> str:
        return f"127.0.0.1:{self.system.port}"

    def pid(self, name: str) -> int:
        status = self.system.get("/v1/status").json()
        found = next(actor["pid"] for actor in status["actors"] if actor["name"].startswith(name))
        assert isinstance(found, int)
        return found


@pytest.fixture(scope="module")
def observed(
    tmp_path_factory: pytest.TempPathFactory, prometheus_programs: Programs, free_port: Callable[[], int]
) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    (folder / "sim").mkdir()
    faulty = next(case for case in CASES if case.alert == "K2rayActorFailed")
    crafted = {"healthy": healthy(), faulty.instance: faulty.series}
    port = free_port()
    sections = {
        "ray": {"dashboard": True, "num_cpus": 2, "object_store_bytes": 100_000_000},
        "api": {"port": port, "replicas": 2},
        "lake": {"commit": {"interval_s": 1}, "upkeep": {"interval_s": 2}},
    }
    with (
        start_sim(folder / "sim", rate=500) as sim,
        a_system(folder / "system", sim, port, **sections) as system,
        crafted_systems(crafted, 0.5) as fakes,
    ):
        up = system.run("up")
        assert up.status == 0, up.err + up.out
        rays = str(system.layout.ray_temp / RAY_TARGETS)
        scrapes: list[dict[str, Any]] = [
            {"job_name": "k2ray", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}], "scrape_timeout": "900ms"},
            {"job_name": "ray", "file_sd_configs": [{"files": [rays], "refresh_interval": "2s"}]},
            {**fakes.scrape_config(), "job_name": "crafted"},
        ]
        with running_prometheus(
            prometheus_programs, folder / "prometheus", free_port(), scrapes, rules=RULES, interval="1s"
        ) as prometheus:
            yield Observed(system, sim, prometheus)


def samples(text: str) -> dict[Sample, float]:
    """Return every sample of a text."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def actors_of(found: dict[Sample, float]) -> set[str]:
    return {dict(labels)["actor"] for _, labels in found}


def test_one_scrape_shows_the_whole_system(observed: Observed, prometheus_programs: Programs) -> None:
    expected = {"supervisor", "feed:binance:0", "writer:trades", "writer:quotes", "upkeep:trades", "api:0", "api:1"}
    answer = eventually(
        lambda: found if expected <= actors_of(samples((found := observed.system.get("/metrics")).text)) else None,
        "everybody is in the answer",
    )
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    prometheus_programs.check("check", "metrics", stdin=answer.text)
    found = samples(answer.text)
    assert all("#" not in value for _, labels in found for _, value in labels), "no generation is a label"
    assert len(found) < 3_000, "series of a small system; each costs Prometheus memory for months"
    replicas = eventually(
        lambda: both if len(both := observed.system.get("/v1/status").json()["replicas"]) == 2 else None,
        "the status shows the replicas, too",
    )
    assert [one["name"] for one in replicas] == ["api:0", "api:1"]
    assert all(psutil.pid_exists(one["pid"]) and one["rss_bytes"] > 50_000_000 for one in replicas), replicas


def test_two_replicas_give_one_answer(observed: Observed) -> None:
    """Each scrape goes to a replica by chance; counters that jump to and fro would be resets at every scrape."""
    before = samples(observed.system.get("/metrics").text)
    for _ in range(20):
        observed.system.get("/v1/symbols")
        now = samples(observed.system.get("/metrics").text)
        lost = {name for name, labels in before.keys() - now.keys() if dict(labels)["actor"].startswith("api:")}
        fell = {key for key, value in before.items() if key[0].endswith("_total") and now.get(key, value) < value}
        assert not lost
        assert not fell
        before = now
    served = {dict(labels)["actor"] for name, labels in before if name == "k2ray_http_requests_total"}
    assert served == {"api:0", "api:1"}


def test_every_panel_has_data(observed: Observed) -> None:
    """Trap 27: dashboards that nobody has ever seen with data."""
    prometheus = observed.prometheus
    eventually(lambda: _scraped(prometheus, {"k2ray", "ray", "crafted"}), "all targets are scraped", timeout_s=60)
    everything = queries()

    def empty() -> set[str]:
        return {query.place for query in everything if not prometheus.query(query.filled(observed.instance))}

    last: set[str] = set()

    def only_faults_are_empty() -> bool:
        nonlocal last
        last = empty()
        return last <= NEEDS_A_FAULT

    try:
        eventually(only_faults_are_empty, "panels have data", timeout_s=60, pause_s=1.0)
    except AssertionError:
        assert not last - NEEDS_A_FAULT
        raise
    crafted = {query.place: _has_data(prometheus, query) for query in everything if query.place in last}
    assert all(crafted.values()), [place for place, found in crafted.items() if not found]
    assert NEEDS_A_FAULT <= {query.place for query in everything}


def _has_data(prometheus: Prometheus, query: Query) -> bool:
    return bool(prometheus.query(query.filled("healthy|K2rayActorFailed")))


def _scraped(prometheus: Prometheus, jobs: set[str]) -> bool:
    targets = prometheus.targets()
    return jobs <= {target["labels"]["job"] for target in targets if target["health"] == "up"}


def test_rays_dashboard_shows_the_actors_by_name_with_state_and_memory(observed: Observed) -> None:
    cluster = json.loads((observed.system.layout.run / "ray.json").read_text())
    token = (observed.system.layout.run / "ray-token").read_text()
    headers = {"Authorization": f"Bearer {token}"}

    def seen() -> dict[str, Any]:
        answer = httpx.get(f"{cluster['dashboard']}/logical/actors", headers=headers, timeout=20)
        assert answer.status_code == 200, answer.text
        return {actor["name"]: actor for actor in answer.json()["data"]["actors"].values() if actor["name"]}

    wanted = {"feed:binance:0#1", "writer:trades#1", "upkeep:trades#1", "supervisor"}

    def all_with_memory() -> bool:
        actors = seen()
        return wanted <= actors.keys() and all(
            actors[name]["state"] == "ALIVE" and actors[name]["processStats"].get("memoryInfo", {}).get("rss", 0) > 0
            for name in wanted
        )

    eventually(all_with_memory, "Ray's dashboard knows them", timeout_s=60, pause_s=0.5)


def test_a_hung_actor_costs_its_own_numbers_and_nothing_else(observed: Observed) -> None:
    pid = observed.pid("writer:quotes")
    os.kill(pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        found = samples(observed.system.get("/metrics").text)
        assert time.monotonic() - began_s < 9, "within Prometheus' ten seconds"
        assert ("k2ray_actor_up", frozenset({("actor", "feed:binance:0")})) in found, "the supervisor's answer"
        age = frozenset({("actor", "writer:quotes")})
        eventually(
            lambda: samples(observed.system.get("/metrics").text).get(("k2ray_metrics_age_seconds", age), 0) > 1,
            "the age of its numbers shows",
            timeout_s=10,
        )
    finally:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)


def test_a_hung_and_a_dead_supervisor_do_not_hang_the_scrape(observed: Observed) -> None:
    pid = observed.pid("supervisor")
    os.kill(pid, signal.SIGSTOP)
    began_s = time.monotonic()
    found = samples(observed.system.get("/metrics").text)
    assert time.monotonic() - began_s < 9, "within Prometheus' ten seconds"
    assert {value for (name, _), value in found.items() if name == "k2ray_supervisor_up"} == {0.0}
    os.kill(pid, signal.SIGKILL)

    def both_again() -> bool:
        now = samples(observed.system.get("/metrics").text)
        return {"api:0", "api:1", "feed:binance:0", "writer:trades"} <= actors_of(now)

    eventually(both_again, "the next supervisor shows everybody again", timeout_s=60)


def test_status_says_degraded_and_why_when_a_feed_records_nothing(observed: Observed) -> None:
    eventually(lambda: observed.system.status()["exit"] == 0, "it is healthy", timeout_s=60)
    table = observed.system.run("status")
    assert table.status == 0
    assert all(column in table.out for column in ("connection", "rotations", "gaps", "leak"))
    assert "open " in next(line for line in table.out.splitlines() if line.startswith("feed:binance:0"))
    observed.sim.stop()

    def degraded() -> dict[str, Any] | None:
        status = observed.system.status()
        return status if status["exit"] == 1 else None

    status = eventually(degraded, "the exit status is 1", timeout_s=60)
    assert any("feed:binance:0#1 records nothing, its connection is " in reason for reason in status["reasons"])
    assert observed.system.run("status").status == 1
