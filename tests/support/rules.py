"""The shipped alert rules, and what they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from k2ray import metrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "ops" / "prometheus" / "k2ray.rules.yml"
RUNBOOK = ROOT / "docs" / "runbook"

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"(\d+)(ms|s|m|h|d)"

EVERYWHERE = {"actor", "leaving", "job", "instance", "le"}
"""Labels that collecting and scraping add, and those of a histogram's buckets."""

_FUNCTIONS = {"by", "on", "without", "ignoring", "group_left", "group_right"}


def alert_rules() -> list[dict[str, Any]]:
    """Return every alert rule of the file."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def for_s(rule: dict[str, Any]) -> float:
    """Return how long a rule waits before it fires."""
    found = re.fullmatch(_DURATION, rule.get("for", "0s"))
    assert found is not None
    return int(found[1]) * SECONDS[found[2]]


def shortened(factor: float, *, longest_for_s: float) -> str:
    """Return the file's text with every duration divided, so that minutes become seconds."""

    def shorter(found: re.Match[str]) -> str:
        seconds = int(found[2]) * SECONDS[found[3]] / factor
        if found[1].startswith("for:"):
            seconds = min(seconds, longest_for_s)
        return f"{found[1]}{round(seconds * 1000)}ms"

    return re.sub(rf"(for: |\[|offset ){_DURATION}", shorter, RULES.read_text())


def unknown_names(expression: str, recorded: frozenset[str] = frozenset()) -> list[str]:
    """Return the metrics and labels of an expression that metrics.py does not declare.

    Args:
        expression: PromQL.
        recorded: Other metrics that are known, such as Prometheus' own.
    """
    wrong = []
    labels_of = _exported()
    plain = re.sub(r'"[^"]*"', '""', expression)
    for name, matchers in re.findall(r"\b([a-z_:][a-z0-9_:]*)(?:\{([^}]*)\})?", plain):
        if not name.startswith("k2ray_"):
            continue
        if name not in labels_of:
            wrong.append(name)
            continue
        for label in re.findall(r"([a-zA-Z_]+)\s*(?:=~|!~|!=|=)", matchers):
            if label not in labels_of[name] | EVERYWHERE:
                wrong.append(f"{name}{{{label}}}")
    used = set(re.findall(r"\bk2ray_[a-z0-9_]+", plain)) & set(labels_of)
    allowed = EVERYWHERE.union(*(labels_of[name] for name in used)) | recorded
    for labels in _grouped(plain):
        wrong += [f"by ({label})" for label in labels if label not in allowed]
    return wrong


def _grouped(expression: str) -> Iterator[list[str]]:
    for word, inside in re.findall(r"\b([a-z_]+)\s*\(([^()]*)\)", expression):
        if word in _FUNCTIONS:
            yield [label.strip() for label in inside.split(",") if label.strip()]


def _exported() -> dict[str, set[str]]:
    """Return the name of each sample -> the labels of its metric."""
    found: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        suffixes = ("",)
        if isinstance(metric, Counter):
            suffixes = ("_total",)
        elif isinstance(metric, Histogram):
            suffixes = ("_bucket", "_sum", "_count")  # type: ignore[assignment]
        for suffix in suffixes:
            found[metric._name + suffix] = set(metric._labelnames)
    return found
