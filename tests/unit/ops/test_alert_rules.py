"""The alert rules, their runbook pages and what they name stay in step."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.alert_cases import CASES, SCRAPE_DOWN
from tests.support.rules import ROOT, RUNBOOK, alert_rules, unknown_names

ALERTS = alert_rules()
EACH = pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert {rule["alert"] for rule in ALERTS} == {page.stem for page in RUNBOOK.glob("*.md")}


@EACH
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["annotations"]["runbook"] == f"docs/runbook/{name}.md"
    assert rule["labels"]["severity"] in {"critical", "warning"}
    page = (ROOT / rule["annotations"]["runbook"]).read_text()
    assert page.startswith(f"# {name}\n")
    for section in ("## What you see", "## What to look at", "## What to do"):
        assert section in page, f"{name}.md lacks {section!r}"
        content = page.split(section, 1)[1].split("\n## ", 1)[0]
        assert len(content.split()) > 8, f"{name}.md: {section!r} says nothing"


@EACH
def test_an_alert_used_a_metric_or_a_label_that_does_not_exist(rule: dict[str, Any]) -> None:
    """Trap 27: an alert used a metric name that does not exist; another filtered on a label that does not exist."""
    assert unknown_names(rule["expr"]) == []
    for text in rule["annotations"].values():
        labels = re.findall(r"\$labels\.([a-z_]+)", text)
        assert unknown_names(f"{rule['expr']} + on ({', '.join(labels)}) x") == []


def test_wrong_names_are_found() -> None:
    assert unknown_names('k2ray_consumer_lag{table="trades"} > 1') == ["k2ray_consumer_lag"]
    assert unknown_names('k2ray_spool_bytes{table="trades"} > 1') == ["k2ray_spool_bytes{table}"]
    assert unknown_names("sum by (symbol) (rate(k2ray_feed_rows_total[5m]))") == ["by (symbol)"]
    assert unknown_names("rate(k2ray_feed_rows[5m])") == ["k2ray_feed_rows"]
    assert unknown_names("k2ray_http_seconds > 1") == ["k2ray_http_seconds"]
    assert unknown_names('sum by (exchange, le) (k2ray_feed_rows_total{channel="trades", leaving=""})') == []


def test_every_alert_has_a_case_that_makes_it_fire() -> None:
    """Trap 27: every alert has a test that makes it fire."""
    assert {case.alert for case in CASES} | {SCRAPE_DOWN} == {rule["alert"] for rule in ALERTS}
    instances = [case.instance for case in CASES]
    assert len(instances) == len(set(instances))


def test_the_operators_table_links_every_page() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    for rule in ALERTS:
        row = f"| [{rule['alert']}](runbook/{rule['alert']}.md) | {rule['labels']['severity']} |"
        assert row in operations, f"docs/operations.md lacks this row:\n{row}"
