from __future__ import annotations

import stat
from pathlib import Path

import pytest

from actors.wanted import Release, Wanted, read_wanted, write_wanted
from k2ray.errors import OperatorNeeded


def test_the_wanted_state_is_read_back_and_is_private(tmp_path: Path) -> None:
    wanted = Wanted(3, "{}", {"feed:binance:0": "actors.feed:FeedActor"}, local_broker=True)
    write_wanted(tmp_path / "run", wanted)
    assert read_wanted(tmp_path / "run") == wanted
    assert stat.S_IMODE((tmp_path / "run" / "wanted.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["wanted.json"]


def test_releases_are_read_back_and_found_by_name(tmp_path: Path) -> None:
    wanted = Wanted(3, "{}", release="r1", code="/r1", releases={"r2": Release('{"a": 1}', "/r2")})
    write_wanted(tmp_path, wanted)
    found = read_wanted(tmp_path)
    assert found == wanted
    assert found.contents("r2") == Release('{"a": 1}', "/r2")
    assert found.contents("r1") == found.contents("long forgotten") == Release("{}", "/r1")
    assert (found.named("r2"), found.named("long forgotten")) == ("r2", "r1")


def test_nothing_was_wanted_yet(tmp_path: Path) -> None:
    assert read_wanted(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"epoch": 1, "colour": "red"}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "wanted.json").write_text(text)
    with pytest.raises(OperatorNeeded, match=r"wanted\.json"):
        read_wanted(tmp_path)
