"""`/metrics` beside a supervisor that hangs, is away, or comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from k2ray.errors import SupervisorUnavailable
from serve import metrics
from serve.metrics import SystemMetrics


def feed_text() -> str:
    registry = CollectorRegistry()
    Counter("k2ray_rows", "Rows.", registry=registry).inc(3)
    return generate_latest(registry).decode()


class Desk:
    """A supervisor's side: answers, is away, or hangs."""

    def __init__(self) -> None:
        self.away = False
        self.hang_s = 0.0
        self.reports = 0

    def ask_all(self, own: str) -> tuple[str, dict[str, str]]:
        time.sleep(self.hang_s)
        if self.away:
            raise SupervisorUnavailable("no actor 'supervisor' lives")
        return "api:1", {"api:1": own, "feed:binance:0": feed_text()}

    def report(self, _own: str) -> str:
        if self.away:
            raise SupervisorUnavailable("no actor 'supervisor' lives")
        self.reports += 1
        return "api:1"


def supervisor_up(text: str) -> dict[str, float]:
    return {
        sample.labels["actor"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "k2ray_supervisor_up"
    }


async def test_everybody_is_in_one_answer() -> None:
    answer = await SystemMetrics(Desk().ask_all, Desk().report).answer()
    assert 'k2ray_rows_total{actor="feed:binance:0"} 3.0' in answer
    assert supervisor_up(answer) == {"api:1": 1.0}


async def test_without_a_supervisor_a_replica_shows_itself_under_the_name_it_had() -> None:
    desk = Desk()
    system = SystemMetrics(desk.ask_all, desk.report)
    desk.away = True
    assert supervisor_up(await system.answer()) == {"api": 0.0}
    desk.away = False
    assert supervisor_up(await system.answer()) == {"api:1": 1.0}
    desk.away = True
    assert supervisor_up(await system.answer()) == {"api:1": 0.0}


async def test_a_hung_supervisor_does_not_hang_the_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ANSWER_TIMEOUT_S", 0.1)
    desk = Desk()
    desk.hang_s = 1.0
    began_s = time.monotonic()
    assert supervisor_up(await SystemMetrics(desk.ask_all, desk.report).answer()) == {"api": 0.0}
    assert time.monotonic() - began_s < 0.9


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  nobody sets an event for a metric
            await asyncio.sleep(0.01)


async def test_a_replica_that_nobody_asks_reports_and_survives_a_restart_of_the_supervisor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "REPORT_INTERVAL_S", 0.01)
    desk = Desk()
    system = SystemMetrics(desk.ask_all, desk.report)
    async with system.reporting():
        await until(lambda: desk.reports > 1)
        desk.away = True
        await until(lambda: float(metrics.SUPERVISOR_UP.labels("api")._value.get()) == 0)
        desk.away = False
        seen = desk.reports
        await until(lambda: desk.reports > seen)
        desk.away = True
        assert supervisor_up(await system.answer()) == {"api:1": 0.0}
