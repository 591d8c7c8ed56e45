"""The shipped Grafana dashboards, and their queries as Prometheus takes them."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tests.support.rules import ROOT

FOLDER = ROOT / "ops" / "grafana" / "dashboards"


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    dashboard: str
    panel: str
    expression: str
    legend: str

    @property
    def place(self) -> str:
        return f"{self.dashboard}: {self.panel}"

    def filled(self, instance: str = ".*", interval: str = "10s") -> str:
        """Return the expression with Grafana's variables filled in."""
        return self.expression.replace("$instance", instance).replace("$__rate_interval", interval)


def builder() -> ModuleType:
    """Return `ops/grafana/build.py` as a module."""
    spec = importlib.util.spec_from_file_location("build_dashboards", ROOT / "ops" / "grafana" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def dashboards() -> dict[str, dict[str, Any]]:
    """Return name -> dashboard, as on disk."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def queries() -> list[Query]:
    """Return every query of every panel."""
    return [
        Query(name, panel["title"], target["expr"], target["legendFormat"])
        for name, dashboard in dashboards().items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
