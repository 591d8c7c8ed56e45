"""Every metric is documented, named by one rule, labelled with few values, and moved by the code, not only declared."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from k2ray import metrics
from tests.support.documentation import metric_rows

ROOT = Path(__file__).parents[2]
DECLARED = {name: metric for name, metric in vars(metrics).items() if isinstance(metric, MetricWrapperBase)}
EACH = pytest.mark.parametrize("name", DECLARED)


def test_every_metric_is_documented() -> None:
    documented = (ROOT / "docs" / "operations.md").read_text()
    rows = metric_rows()
    assert len(rows) > 10
    lacking = [row for row in rows if row not in documented]
    assert not lacking, "docs/operations.md lacks these rows:\n" + "\n".join(lacking)
    known = {row.split("|")[1] for row in rows}
    table = documented[documented.index("| metric | meaning |") :]
    gone = [row for row in re.findall(r"^\|( `k2ray_[a-z0-9_]+` )\|", table, re.MULTILINE) if row not in known]
    assert not gone, f"docs/operations.md lists metrics that nobody declares: {gone}"


@EACH
def test_names_follow_the_rule(name: str) -> None:
    metric = DECLARED[name]
    exported = metric._name
    assert re.fullmatch(r"k2ray(_[a-z0-9]+)+", exported)
    assert not re.search(r"_(total|count|sum|bucket|info|created|milliseconds|ms|minutes|hours|kb|mb)$", exported)
    if isinstance(metric, Histogram):
        assert exported.endswith(("_seconds", "_bytes", "_rows"))
    assert isinstance(metric, Counter | Gauge | Histogram), "labels and restarts are only thought through for these"
    assert metric._documentation.endswith("."), "a sentence"


@EACH
def test_labels_have_few_values(name: str) -> None:
    labels = DECLARED[name]._labelnames
    assert set(labels) <= set(metrics.LABELS), f"metrics.LABELS does not allow {set(labels) - set(metrics.LABELS)}"
    assert len(labels) <= 4


def test_no_two_metrics_share_a_name() -> None:
    names = [metric._name for metric in DECLARED.values()]
    assert len(names) == len(set(names))


def test_every_metric_is_used_by_the_code() -> None:
    """Trap 27: metrics that were declared and never set."""
    used: set[str] = set()
    for package in ("k2ray", "actors", "serve"):
        for path in (ROOT / package).rglob("*.py"):
            if path == ROOT / "k2ray" / "metrics.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    used.add(node.attr)
                elif isinstance(node, ast.Name):
                    used.add(node.id)
    unused = sorted(set(DECLARED) - used)
    assert not unused
