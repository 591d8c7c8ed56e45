from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors import handover
from actors.history import History, write_history
from k2ray.errors import SupervisorUnavailable
from k2ray.layout import DataDir


class Away:
    """A supervisor that answers at the third question."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, namespace: str, timeout_s: float) -> dict[str, Any]:
        self.asked += 1
        if self.asked < 3:
            raise SupervisorUnavailable("nobody of that name")
        return {"level": 0}


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Away:
    away = Away()
    monkeypatch.setattr(handover, "system_status", away)
    monkeypatch.setattr(handover, "PAUSE_S", 0.0)
    return away


def begin(layout: DataDir) -> History:
    history = History()
    history.begin("abc", "deploy", "me", "then")
    write_history(layout, history)
    return history


def test_while_a_deployment_remakes_the_supervisor_a_question_waits(away: Away, tmp_path: Path) -> None:
    begin(DataDir(tmp_path))
    assert handover.status_through_handover(DataDir(tmp_path), 1) == {"level": 0}


def test_without_a_deployment_its_absence_is_said_at_once(away: Away, tmp_path: Path) -> None:
    layout = DataDir(tmp_path)
    history = begin(layout)
    history.succeed("now")
    write_history(layout, history)
    with pytest.raises(SupervisorUnavailable):
        handover.status_through_handover(layout, 1)
    assert away.asked == 1


def test_patience_ends(away: Away, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(DataDir(tmp_path))
    monkeypatch.setattr(handover, "PATIENCE_S", -1.0)
    with pytest.raises(SupervisorUnavailable):
        handover.status_through_handover(DataDir(tmp_path), 1)
