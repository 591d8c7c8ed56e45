from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from actors.releases import INSTALLED, PACKAGES, ReleaseStore, library_changes, running_code
from k2ray.errors import BadInput, OperatorNeeded
from k2ray.layout import DataDir
from k2ray.settings import load_settings

ACTORS = {"writer:trades": "actors.writer:WriterActor"}


def a_store(folder: Path, marker: str = "1") -> ReleaseStore:
    for package in PACKAGES:
        (folder / "code" / package / "inner").mkdir(parents=True, exist_ok=True)
        (folder / "code" / package / "__init__.py").write_text("")
        (folder / "code" / package / "__pycache__").mkdir(exist_ok=True)
        (folder / "code" / package / "__pycache__" / "x.pyc").write_text(marker)
    (folder / "code" / "k2ray" / "inner" / "pom.xml").write_text(marker)
    return ReleaseStore(DataDir(folder), {package: folder / "code" / package for package in PACKAGES})


def test_a_release_holds_code_and_settings_and_is_found_again(tmp_path: Path) -> None:
    settings = load_settings(arguments={"data_dir": str(tmp_path)}, environ={})
    store = a_store(tmp_path)
    digest = store.digest_now(settings)
    assert not (tmp_path / "releases").exists(), "to ask writes nothing"
    made = store.make(settings, ACTORS)
    assert made.digest == digest == made.folder.name
    assert (made.folder / "k2ray" / "inner" / "pom.xml").read_text() == "1"
    assert not list(made.folder.rglob("__pycache__"))
    assert stat.S_IMODE((made.folder / "settings.json").stat().st_mode) == 0o600, "settings hold secrets"
    assert made.settings() == json.loads(settings.to_json())
    assert store.make(settings, ACTORS) == store.open(digest[:5]) == made
    assert dict(made.actors) == ACTORS
    assert made.libraries["pyarrow"]
    assert library_changes(made) == []


def test_other_code_or_other_settings_are_another_release(tmp_path: Path) -> None:
    settings = load_settings(arguments={"data_dir": str(tmp_path)}, environ={})
    other = load_settings(arguments={"data_dir": str(tmp_path), "feed": {"transport": "picows"}}, environ={})
    store = a_store(tmp_path)
    first = store.make(settings, ACTORS)
    second = store.make(other, ACTORS)
    assert (first.code, first.digest != second.digest) == (second.code, True)
    third = a_store(tmp_path, "2").make(settings, ACTORS)
    assert third.code != first.code
    assert (first.folder / "k2ray" / "inner" / "pom.xml").read_text() == "1", "the old code stays what it was"


def test_a_release_whose_files_were_changed_is_refused_and_made_anew(tmp_path: Path) -> None:
    settings = load_settings(arguments={"data_dir": str(tmp_path)}, environ={})
    store = a_store(tmp_path)
    made = store.make(settings, ACTORS)
    (made.folder / "__pycache__").mkdir()
    (made.folder / "k2ray" / "__pycache__").mkdir()
    (made.folder / "k2ray" / "__pycache__" / "y.pyc").write_text("compiled by an actor")
    assert store.open(made.digest) == made
    (made.folder / "actors" / "__init__.py").write_text("edited")
    with pytest.raises(OperatorNeeded, match="not what was stored"):
        store.open(made.digest)
    again = store.make(settings, ACTORS)
    assert (again.folder / "actors" / "__init__.py").read_text() == ""


def test_an_unknown_or_ambiguous_release_is_an_error_that_lists_what_is_kept(tmp_path: Path) -> None:
    settings = load_settings(arguments={"data_dir": str(tmp_path)}, environ={})
    made = a_store(tmp_path).make(settings, ACTORS)
    for name in ("", "zzz"):
        with pytest.raises(BadInput, match=made.digest):
            a_store(tmp_path).open(name)


def test_the_needed_ones_are_kept_up_to_a_number(tmp_path: Path) -> None:
    settings = load_settings(arguments={"data_dir": str(tmp_path)}, environ={})
    made = []
    for number in range(4):
        made.append(a_store(tmp_path, str(number)).make(settings, ACTORS).digest)
        time.sleep(0.01)
    store = a_store(tmp_path)
    assert store.digests() == made
    assert set(store.prune([made[3], made[0], made[2]], 2)) == {made[1], made[2]}
    assert store.digests() == [made[0], made[3]]


def test_a_half_made_release_is_not_seen(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    (tmp_path / "releases" / ".abcdefabcdef.17").mkdir(parents=True)
    assert store.digests() == []


def test_this_process_runs_no_release() -> None:
    assert running_code() == INSTALLED
