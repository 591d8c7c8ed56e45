"""The watch over metrics sees what moved, in this process and in a real system's answer, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.values import ValueClass

from k2ray import metrics
from tests.support import moved


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved, "_movers", {})


def test_nothing_moved_at_first() -> None:
    assert len(moved.unmoved()) == len(moved.declared()) > 20


def test_a_text_moves_what_is_not_zero_in_it() -> None:
    text = (
        "# TYPE k2ray_spool_bytes gauge\n"
        'k2ray_spool_bytes{client="a"} 0\n'
        "# TYPE k2ray_produced_rows_total counter\n"
        'k2ray_produced_rows_total{topic="a"} 3\n'
        "# TYPE k2ray_commit_seconds histogram\n"
        'k2ray_commit_seconds_bucket{le="+Inf"} 0\n'
        "k2ray_commit_seconds_count 0\n"
        "k2ray_commit_seconds_sum 0\n"
    )
    moved.note_text(text, "a test")
    assert moved._movers == {"k2ray_produced_rows": "a test"}


def test_what_a_test_changes_in_this_process_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValueClass, "set", ValueClass.set)  # undone at the end: the session's own watch goes on
    monkeypatch.setattr(ValueClass, "inc", ValueClass.inc)
    watch = moved.MetricWatch()
    watch.install()
    metrics.SPOOL_BYTES.labels("moved").set(0)
    metrics.COMMIT_SECONDS.labels("moved")
    watch.pytest_runtest_logfinish("only declared")
    assert not {"k2ray_spool_bytes", "k2ray_commit_seconds"} & moved._movers.keys()
    metrics.SPOOL_BYTES.labels("moved").set(7)
    metrics.SPOOL_BYTES.labels("moved").set(0)
    metrics.COMMIT_SECONDS.labels("moved").observe(0.1)
    watch.pytest_runtest_logfinish("set and taken back")
    watch.pytest_runtest_logfinish("idle")
    assert moved._movers["k2ray_spool_bytes"] == moved._movers["k2ray_commit_seconds"] == "set and taken back"
    for metric in (metrics.SPOOL_BYTES, metrics.COMMIT_SECONDS):
        metric.remove("moved")


def session(**config: Any) -> Any:
    return SimpleNamespace(config=SimpleNamespace(**config), exitstatus=pytest.ExitCode.OK)


def test_a_whole_session_fails_on_a_metric_that_nothing_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 27: consumer-lag metrics were never set."""
    monkeypatch.setattr(moved, "is_whole", lambda _config: True)
    monkeypatch.setenv("K2TEST_UNMOVED", "fail")
    ended = session()
    moved.MetricWatch().pytest_sessionfinish(ended, pytest.ExitCode.OK)
    assert ended.exitstatus == pytest.ExitCode.TESTS_FAILED
    monkeypatch.setattr(moved, "_movers", dict.fromkeys(moved.declared(), "a test"))
    ended = session()
    moved.MetricWatch().pytest_sessionfinish(ended, pytest.ExitCode.OK)
    assert ended.exitstatus == pytest.ExitCode.OK


def test_what_moved_in_a_worker_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    moved.note_text('# TYPE k2ray_spool_bytes gauge\nk2ray_spool_bytes{client="a"} 1\n', "a worker's test")
    worker = session(workeroutput={})
    moved.MetricWatch().pytest_sessionfinish(worker, pytest.ExitCode.OK)
    monkeypatch.setattr(moved, "_movers", {})
    moved.MetricWatch().pytest_testnodedown(SimpleNamespace(workeroutput=worker.config.workeroutput))
    assert moved._movers == {"k2ray_spool_bytes": "a worker's test"}
