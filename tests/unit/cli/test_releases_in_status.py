"""What `status` and the dry run say of releases; nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.deploy import Change
from actors.history import History, write_history
from k2ray.cli.deploy import describe
from k2ray.cli.status import look
from k2ray.cli.system import System
from k2ray.errors import TryAgain
from k2ray.settings import load_settings


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System.of(load_settings(arguments={"data_dir": str(tmp_path)}, environ={}))


def half_way(system: System) -> None:
    history = History()
    history.begin("aaa", "up", "me@here", "then")
    history.succeed("now")
    history.begin("bbb", "deploy", "me@here", "then")
    history.note("start beside the old: feed:binance:0")
    write_history(system.layout, history)


def test_a_deployment_left_half_way_is_explained_with_the_ways_out(system: System) -> None:
    half_way(system)
    picture, _ = look(system)
    assert picture["release"] == "aaa"
    assert picture["deployment"]["digest"] == "bbb"
    (reason,) = [reason for reason in picture["reasons"] if "half-way" in reason]
    assert "start beside the old: feed:binance:0" in reason
    assert "`k2ray deploy` completes it, `k2ray rollback` takes it back" in reason


def test_a_deployment_at_work_is_no_trouble(system: System) -> None:
    half_way(system)
    assert not system.is_changed()
    with system.alone():
        assert system.is_changed()
        picture, _ = look(system)
        with pytest.raises(TryAgain, match="is at work"), system.alone():
            pass
    assert picture["deployment"]["at_work"] is True
    assert not [reason for reason in picture["reasons"] if "half-way" in reason]


def test_a_damaged_history_is_a_reason(system: System) -> None:
    half_way(system)
    (system.layout.releases / "history.json").write_text("{")
    picture, _ = look(system)
    assert "cannot be read" in picture["reasons"][0]


def test_changed_settings_are_shown_without_secrets() -> None:
    lines = describe([Change("wire.registry_password", "old-one", "new-one"), Change("feed.transport", "a", "b")])
    assert lines == ["wire.registry_password: ******** -> ********", "feed.transport: a -> b"]
