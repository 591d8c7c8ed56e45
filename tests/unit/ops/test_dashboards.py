"""The dashboards on disk are what their tables say, and name only what exists."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from k2ray import metrics
from tests.support.dashboards import FOLDER, Query, builder, dashboards, queries
from tests.support.rules import ROOT, unknown_names

RAYS = frozenset({"State", "ray_actors", "ray_node_mem_used"})
EACH = pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.place} {query.legend}")


def test_the_json_is_what_the_tables_say() -> None:
    build = builder()
    assert {path.stem for path in FOLDER.glob("*.json")} == set(build.DASHBOARDS)
    for name in build.DASHBOARDS:
        assert (FOLDER / f"{name}.json").read_text() == build.text(name), "run: python ops/grafana/build.py"


@EACH
def test_a_query_names_metrics_and_labels_that_exist(query: Query) -> None:
    """Trap 27: what watches a metric that does not exist is silent for ever."""
    assert unknown_names(query.expression, RAYS) == []
    legend_labels = [label for label in re.findall(r"{{(\w+)}}", query.legend) if label != "alertname"]
    if "k2ray_" in query.expression and not query.expression.startswith("ray_"):
        assert unknown_names(f"{query.expression} + on ({', '.join(legend_labels)}) x") == []
    grouped = re.match(r"sum by \(([^)]*)\)", query.expression)
    if grouped:
        assert set(legend_labels) <= {label.strip() for label in grouped[1].split(",")}, "the legend would be empty"


def test_panels_do_not_overlap_and_have_names_of_their_own() -> None:
    for dashboard in dashboards().values():
        places = Counter((panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"])
        titles = Counter(panel["title"] for panel in dashboard["panels"])
        assert max(places.values()) == max(titles.values()) == 1
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in dashboard["panels"])


def test_every_metric_is_on_a_dashboard() -> None:
    shown = " ".join(query.expression for query in queries())
    left_out = {"k2ray_compacted_files", "k2ray_compacted_bytes"}  # rows say it
    names = {metric._name for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)}
    missing = {name for name in names - left_out if not re.search(rf"\b{name}(_total|_bucket)?\b", shown)}
    assert not missing


def test_what_is_provisioned_is_valid() -> None:
    folder = ROOT / "ops" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "k2ray.yml").read_text())["datasources"]
    assert (source["type"], source["access"]) == ("prometheus", "proxy")
    (provider,) = yaml.safe_load((folder / "dashboards" / "k2ray.yml").read_text())["providers"]
    assert provider["type"] == "file"
    scrape = yaml.safe_load((ROOT / "ops" / "prometheus" / "prometheus.yml").read_text())
    assert [job["job_name"] for job in scrape["scrape_configs"]] == ["k2ray", "ray"]
    assert scrape["rule_files"] == ["k2ray.rules.yml"]
