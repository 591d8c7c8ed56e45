"""Which of k2ray's metrics moved during a test session, and which test moved them first.

Changes of values in the process itself are seen as they are made, also those that are taken back before a test ends.
Metrics of other processes count where a test reads a real system's `/metrics`: every sample that is not zero there has
moved. `note_text` takes that in.
A session is whole if it runs everything that `make test` runs; only then can one say that nothing moves a metric, and
such a session says so; under K2TEST_UNMOVED=fail it fails (trap 27: consumer-lag metrics were never set; alerts on such
a metric are silent for ever).
With several workers (pytest-xdist) each tells the first process what moved in it.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.values import ValueClass

from k2ray import metrics

_movers: dict[str, str] = {}
"""Family -> the first test that moved it."""


def declared() -> dict[str, str]:
    """Return each metric's exported family name -> its name in metrics.py."""
    return {metric._name: name for name, metric in vars(metrics).items() if isinstance(metric, MetricWrapperBase)}


def note_text(text: str, reader: str) -> None:
    """Take in what a real system's `/metrics` said; every sample that is not zero has moved there."""
    for family in text_string_to_metric_families(text):
        if any(sample.value for sample in family.samples):
            _movers.setdefault(family.name, reader)


def unmoved() -> list[str]:
    """Return the names in metrics.py that nothing has moved so far."""
    return sorted(name for family, name in declared().items() if family not in _movers)


def is_whole(config: pytest.Config) -> bool:
    """Whether this session runs all that `make test` runs."""
    chosen_by_hand = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    narrowed = config.option.keyword or config.option.markexpr not in ("", "not chaos_full")
    again = getattr(config.option, "lf", False) or getattr(config.option, "deselect", None)
    return not (chosen_by_hand or narrowed or again)


class MetricWatch:
    """The pytest plugin: looks after each test, and judges a whole session at its end."""

    def __init__(self) -> None:
        self._changed: set[int] = set()
        self._still: list[str] = []

    def install(self) -> None:
        """Look on whenever prometheus-client changes a value, from now on."""
        plain_set, plain_inc = ValueClass.set, ValueClass.inc
        changed = self._changed

        def watched_set(value: Any, to: float, **keywords: Any) -> None:
            if to != value.get():
                changed.add(id(value))
            plain_set(value, to, **keywords)

        def watched_inc(value: Any, amount: float) -> None:
            if amount:
                changed.add(id(value))
            plain_inc(value, amount)

        ValueClass.set, ValueClass.inc = watched_set, watched_inc

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take in what moved in a worker that has ended."""
        for family, mover in getattr(node, "workeroutput", {}).get("movers", {}).items():
            _movers.setdefault(family, mover)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Tell the first process what moved here; there, fail a whole session that left a metric unmoved."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["movers"] = dict(_movers)
        elif exitstatus == pytest.ExitCode.OK and is_whole(session.config):
            self._still = unmoved()
            if self._still and os.environ.get("K2TEST_UNMOVED") == "fail":
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what has not moved: where that is a failure, and where K2TEST_UNMOVED=1 asks for it."""
        if self._still:
            terminalreporter.write_line(f"WARNING: no test makes these metrics move: {', '.join(self._still)}")
        elif os.environ.get("K2TEST_UNMOVED") == "1":
            terminalreporter.write_line(f"metrics that this session did not move: {', '.join(unmoved())}")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Note whose values changed during the test."""
        for family, name in declared().items():
            if family not in _movers and any(id(value) in self._changed for value in _values(getattr(metrics, name))):
                _movers[family] = nodeid
        self._changed.clear()


def _values(metric: Any) -> list[Any]:
    """Return the values of a metric's children; a histogram's is the sum of what it observed."""
    children = list(metric._metrics.values()) if metric._labelnames else [metric]
    return [child._sum if isinstance(child, Histogram) else child._value for child in children]
