from __future__ import annotations

from pathlib import Path

import pytest

from actors.history import FAILED, REPLACED, ROLLED_BACK, RUNNING, History, read_history, write_history
from k2ray.errors import BadInput, OperatorNeeded
from k2ray.layout import DataDir


def ran(*digests: str) -> History:
    history = History()
    for digest in digests:
        go(history, digest)
    return history


def go(history: History, digest: str, kind: str = "deploy") -> None:
    history.begin(digest, kind, "me@here", "then")
    history.succeed("now")


def states(history: History) -> list[tuple[str, str]]:
    return [(one.digest, one.state) for one in history.deployments]


def test_a_rollback_goes_back_and_the_next_one_further_back_never_forward_again() -> None:
    history = ran("a", "b", "c")
    assert (history.running, history.previous()) == ("c", "b")
    go(history, "b", "rollback")
    assert (history.running, history.previous()) == ("b", "a")
    go(history, "a", "rollback")
    assert history.running == "a"
    with pytest.raises(BadInput, match="nothing to go back to"):
        history.previous()
    assert states(history) == [
        ("a", REPLACED),
        ("b", ROLLED_BACK),
        ("c", ROLLED_BACK),
        ("b", ROLLED_BACK),
        ("a", RUNNING),
    ]
    go(history, "c")
    assert (history.running, history.previous()) == ("c", "a")


def test_a_failed_deployment_is_no_place_to_go_back_to() -> None:
    history = ran("a")
    history.begin("b", "deploy", "me", "then")
    history.fail("no data", "now")
    assert history.running == "a"
    assert states(history)[-1] == ("b", FAILED)
    go(history, "c")
    assert history.previous() == "a"


def test_what_was_left_half_way_is_taken_back_to_what_ran_or_completed() -> None:
    history = ran("a")
    history.begin("b", "deploy", "me", "then")
    history.note("start beside the old: feed:binance:0")
    assert history.under_way is not None
    assert (history.under_way.digest, history.running, history.previous()) == ("b", "a", "a")
    assert history.needed()[:2] == ["a", "b"]

    completed = History(history.deployments)
    go(completed, "b")
    assert states(completed) == [("a", REPLACED), ("b", RUNNING)]

    taken_back = History(history.deployments)
    go(taken_back, "a", "rollback")
    assert states(taken_back) == [("a", REPLACED), ("b", FAILED), ("a", RUNNING)]
    assert "left half-way at: start beside the old" in taken_back.deployments[1].reason

    other = History(history.deployments)
    go(other, "c")
    assert states(other) == [("a", REPLACED), ("b", FAILED), ("c", RUNNING)]


def test_the_record_survives_and_a_damaged_one_says_so(tmp_path: Path) -> None:
    layout = DataDir(tmp_path)
    assert read_history(layout).deployments == []
    history = ran("a", "b")
    write_history(layout, history)
    assert read_history(layout).deployments == history.deployments
    (layout.releases / "history.json").write_text("[{]")
    with pytest.raises(OperatorNeeded, match="cannot be read"):
        read_history(layout)
