"""An exchange's limits, shared: the supervisor forgets nothing when it dies, and there is a reserve without it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from actors import edge
from actors.limits import FILE, LimitDesk, Permits
from k2ray.errors import BadInput, SupervisorUnavailable, TryAgain
from k2ray.settings import Settings, load_settings


def settings_with(connects: int = 20, window_s: float = 300, feeds: int = 1) -> Settings:
    limits = {"connects": connects, "connects_window_s": window_s, "weight": 100}
    return load_settings(arguments={"exchanges": {"binance": {"limits": limits, "connections": feeds}}}, environ={})


def desk(run: Path, settings: Settings | None = None) -> LimitDesk:
    made = LimitDesk(run)
    made.configure(settings or settings_with())
    return made


def test_what_was_granted_stays_counted_by_the_next_supervisor(tmp_path: Path) -> None:
    """A supervisor that is killed again and again would else grant its limit each time."""
    granted = 0
    for _ in range(5):
        counting = desk(tmp_path)
        while counting.permit("binance", "connects", 1) == 0.0:
            granted += 1
    assert granted == 16
    assert 0 < desk(tmp_path).permit("binance", "connects", 1) <= 315


def test_a_ban_is_kept_too_and_other_resources_go_on(tmp_path: Path) -> None:
    desk(tmp_path).ban("binance", "weight", 120)
    later = desk(tmp_path)
    assert 100 < later.permit("binance", "weight", 1) <= 120
    assert later.permit("binance", "connects", 1) == 0.0
    assert later.describe()["binance"]["weight"]["left"] == 0


def test_time_that_passed_while_nobody_counted_is_forgotten_only_on_the_same_clock(tmp_path: Path) -> None:
    counting = desk(tmp_path, settings_with(window_s=0.01))
    for _ in range(16):
        assert counting.permit("binance", "connects", 1) == 0.0
    memory = json.loads((tmp_path / FILE).read_text())
    memory["at_s"] -= 3600
    (tmp_path / FILE).write_text(json.dumps(memory))
    assert desk(tmp_path).permit("binance", "connects", 1) == 0.0, "an hour later"
    for _ in range(15):
        desk(tmp_path).permit("binance", "connects", 1)
    (tmp_path / FILE).write_text(json.dumps({**memory, "boot": "another"}))
    assert desk(tmp_path).permit("binance", "connects", 1) > 0.0, "another clock says nothing of the time between"


def test_a_damaged_file_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    assert desk(tmp_path).permit("binance", "connects", 1) == 0.0


def test_new_settings_keep_what_was_taken(tmp_path: Path) -> None:
    counting = desk(tmp_path)
    for _ in range(10):
        assert counting.permit("binance", "connects", 1) == 0.0
    counting.configure(settings_with(connects=15))
    assert [counting.permit("binance", "connects", 1) == 0.0 for _ in range(4)] == [True, True, False, False]


def test_before_any_settings_nobody_is_granted_anything(tmp_path: Path) -> None:
    with pytest.raises(SupervisorUnavailable):
        LimitDesk(tmp_path).permit("binance", "connects", 1)


def test_the_budgets_metrics_move(tmp_path: Path) -> None:
    """Trap 27: metrics that were never set."""

    def value(name: str, resource: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"exchange": "binance", "resource": resource})

    counting = desk(tmp_path)
    counting.permit("binance", "connects", 1)
    counting.ban("binance", "weight", 60)
    counting.show()
    assert value("k2ray_exchange_budget_left", "connects") == 15
    assert value("k2ray_exchange_budget_left", "weight") == 0
    assert 50 < (value("k2ray_exchange_banned_seconds", "weight") or 0) <= 60
    assert value("k2ray_exchange_banned_seconds", "connects") == 0


class Away:
    """Plays the supervisor behind `edge`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
        self.away = False
        self.hangs = False
        self.desk = desk(run)
        self.asked = 0
        monkeypatch.setattr(edge, "find", self.find)
        monkeypatch.setattr(edge, "answer", self.answer)

    def find(self, name: str, namespace: str) -> Away:
        if self.away:
            raise SupervisorUnavailable("no actor lives")
        return self

    async def answer(self, handle: Any, method: str, *arguments: Any) -> Any:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise SupervisorUnavailable("it died")
        return getattr(self.desk, method)(*arguments)


async def test_permits_are_granted_by_the_supervisor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    supervisor = Away(monkeypatch, tmp_path)
    permits = Permits("here", settings_with())
    for _ in range(16):
        await permits.permit("binance", "connects", deadline_s=1)
    with pytest.raises(TryAgain, match="not granted"):
        await permits.permit("binance", "connects", deadline_s=1)
    assert supervisor.asked == 17
    with pytest.raises(BadInput):
        await permits.permit("binance", "weight", 5_000, deadline_s=1)


async def test_without_a_supervisor_the_reserve_is_used_and_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    supervisor = Away(monkeypatch, tmp_path)
    supervisor.away = True
    feeds = [Permits("here", settings_with(feeds=2)) for _ in range(2)]
    granted = 0
    for permits in feeds:
        while await permits.ask("binance", "connects") == 0.0:
            granted += 1
    assert granted == 4, "what the supervisor does not grant: 20 of which it grants 16"
    supervisor.away = False
    assert await feeds[0].ask("binance", "connects") == 0.0, "it is back"


async def test_where_the_reserve_is_too_small_one_waits_for_the_supervisor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    supervisor = Away(monkeypatch, tmp_path)
    supervisor.away = True
    permits = Permits("here", settings_with(feeds=4))
    assert await permits.ask("binance", "weight", 20) > 0, "a hundred, a fifth in reserve, five processes"
    supervisor.away = False
    assert await permits.ask("binance", "weight", 20) == 0.0


async def test_a_supervisor_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("actors.line.ANSWER_TIMEOUT_S", 0.05)
    Away(monkeypatch, tmp_path).hangs = True
    started_s = time.monotonic()
    await Permits("here", settings_with()).permit("binance", "connects")
    assert time.monotonic() - started_s < 5


async def test_a_ban_is_told_and_remembered_while_nobody_can_be_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    supervisor = Away(monkeypatch, tmp_path)
    permits = Permits("here", settings_with())
    await permits.ban("binance", "weight", 60)
    assert supervisor.desk.permit("binance", "weight", 1) > 50
    supervisor.away = True
    assert await permits.ask("binance", "weight", 1) > 50
    await permits.ban("binance", "weight", 600)
    assert await permits.ask("binance", "weight", 1) > 500


async def test_what_the_exchange_counts_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    supervisor = Away(monkeypatch, tmp_path)
    permits = Permits("here", settings_with())
    await permits.observe("binance", "weight", 70)
    assert supervisor.desk.describe()["binance"]["weight"]["left"] == 10
    supervisor.away = True
    await permits.observe("binance", "weight", 100)
    assert await permits.ask("binance", "weight", 1) > 0
