"""Every alert fires in a real Prometheus on its own fault and on nothing else, and none on a healthy or a thin system.

Two ways: a real Prometheus scrapes crafted systems, with all durations of the rules divided by thirty; promtool runs
the rules as they are over the same series.
"""

from __future__ import annotations

import contextlib
import socket
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from k2ray.cli.monitoring import monitoring
from tests.support.alert_cases import CASES, SCRAPE_DOWN, healthy, thin
from tests.support.crafted import crafted_systems, input_series
from tests.support.eventually import eventually
from tests.support.prometheus import Programs, Prometheus, running_prometheus
from tests.support.rules import RULES, alert_rules, for_s, shortened

pytestmark = pytest.mark.integration

INTERVAL_S = 0.5
REAL_INTERVAL_S = 15.0
QUIET = {"healthy": healthy(), "thin": thin()}
SYSTEMS = {case.instance: case.series for case in CASES} | QUIET


Fired = dict[str, set[str]]


class Watch:
    """What has fired so far, and what it said: an alert on a single event is over soon."""

    def __init__(self, prometheus: Prometheus) -> None:
        self._prometheus = prometheus
        self.fired: Fired = defaultdict(set)
        self.texts: set[str] = set()

    def missing(self, expected: Fired) -> list[str]:
        """Look once more; return the systems whose alert has not fired."""
        for alert in self._prometheus.alerts():
            self.fired[alert["labels"].get("instance", "")].add(alert["labels"]["alertname"])
            self.texts |= set(alert["annotations"].values())
        return sorted(system for system, alerts in expected.items() if not alerts <= self.fired[system])


def test_the_rules_and_the_config_are_valid(prometheus_programs: Programs, tmp_path: Path) -> None:
    assert "SUCCESS" in prometheus_programs.check("check", "rules", str(RULES))
    (tmp_path / "k2ray.yaml").write_text("{}")
    monitoring(tmp_path / "k2ray.yaml", tmp_path / "watch")
    assert "SUCCESS" in prometheus_programs.check("check", "config", str(tmp_path / "watch" / "prometheus.yml"))


@pytest.mark.timeout(200)
def test_each_alert_fires_on_its_fault_and_on_nothing_else(
    prometheus_programs: Programs, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Trap 27: an alert used a metric that does not exist, another a label: they could never fire."""
    rules = tmp_path / "k2ray.rules.yml"
    rules.write_text(shortened(REAL_INTERVAL_S / INTERVAL_S, longest_for_s=3.0))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        away = f"127.0.0.1:{nobody.getsockname()[1]}"
        with crafted_systems(SYSTEMS, INTERVAL_S) as systems:
            scrape = systems.scrape_config()
            scrape["static_configs"].append({"targets": [away]})
            interval = f"{round(INTERVAL_S * 1000)}ms"
            with running_prometheus(
                prometheus_programs, tmp_path / "prometheus", free_port(), [scrape], rules=rules, interval=interval
            ) as prometheus:
                expected = {case.instance: {case.alert} for case in CASES} | {away: {SCRAPE_DOWN}}
                watch = Watch(prometheus)
                with contextlib.suppress(AssertionError):  # the comparison below says more
                    eventually(lambda: not watch.missing(expected), "all alerts fire", timeout_s=120, pause_s=0.2)
                assert {
                    rule["alert"]: rule.get("lastError") for rule in prometheus.rules() if rule["health"] != "ok"
                } == {}
                assert watch.missing(expected) == []
                # The server's own address may be late on a busy machine; what it shows is judged.
                known = {system: fired for system, fired in watch.fired.items() if system in SYSTEMS or system == away}
                assert {system: fired for system, fired in known.items() if fired} == expected
                for text in watch.texts:
                    assert text
                    assert "<no value>" not in text
                    assert "error expanding" not in text


def test_each_alert_waits_as_long_as_it_says(prometheus_programs: Programs, tmp_path: Path) -> None:
    """The real durations: promtool runs the rules over the same series."""
    rules = {rule["alert"]: rule for rule in alert_rules()}
    tests = []
    for case in CASES:
        waits_s = for_s(rules[case.alert])
        fires_s = waits_s + 360
        ticks = int(fires_s / REAL_INTERVAL_S) + 2
        states = [{"eval_time": f"{int(fires_s)}s", "expr": _fires(case.alert), "exp_samples": [_sample(1)]}]
        if waits_s:
            before_s = int(waits_s / 2)
            states.append({"eval_time": f"{before_s}s", "expr": _fires(case.alert), "exp_samples": [_sample(0)]})
        series = input_series(case.series, ticks, case.instance)
        tests.append({"interval": "15s", "name": case.instance, "input_series": series, "promql_expr_test": states})
    quiet = {
        "eval_time": "16m",
        "expr": 'count(max_over_time(ALERTS{alertstate="firing"}[2h])) or vector(0)',
        "exp_samples": [_sample(0)],
    }
    for name, series_of in QUIET.items():
        series = input_series(series_of, 66, name)
        tests.append({"interval": "15s", "name": name, "input_series": series, "promql_expr_test": [quiet]})
    file = tmp_path / "rules_test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": tests}))
    assert "SUCCESS" in prometheus_programs.check("test", "rules", str(file))


def _fires(alert: str) -> str:
    """Whether it has fired so far."""
    fired = f'max_over_time(ALERTS{{alertname="{alert}",alertstate="firing"}}[2h])'
    return f"count(count by (alertname) ({fired})) or vector(0)"


def _sample(value: int) -> dict[str, object]:
    return {"labels": "{}", "value": value}
