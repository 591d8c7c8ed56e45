from __future__ import annotations

from typing import Any

import pytest

from actors.deploy import Outcome
from actors.steadiness import PATIENCE_S, Steadiness

FEED, WRITER = "feed:binance:0", "writer:trades"
FIRST_COMMIT_S = 35.0


def actor(*, code: str = "green", state: str = "running", ready: bool = True, lag: int = 0, **more: Any) -> Any:
    restarts = more.pop("restarts", 0)
    detail = {"code": code, **more}
    return {
        "state": state,
        "ready": ready,
        "restarts": restarts,
        "last_reason": "",
        "lag_trades": lag,
        "detail": detail,
    }


def begun(name: str = FEED, **given: Any) -> Steadiness:
    return Steadiness([name], "green", {name: actor(**given)}, 0.0, FIRST_COMMIT_S)


def test_restarts_wrong_code_and_absence_fail_at_once() -> None:
    assert begun().look({FEED: actor()}, 1.0).outcome is Outcome.DONE
    for seen, word in (
        ({}, "gone"),
        ({FEED: actor(code="blue")}, "release blue"),
        ({FEED: actor(restarts=1)}, "restarted"),
        ({FEED: actor(state="backoff")}, "backoff"),
    ):
        verdict = begun().look(seen, 1.0)
        assert verdict.outcome is Outcome.FAILED
        assert word in verdict.reason


def test_a_feed_that_stops_delivering_after_the_cut_fails_the_release() -> None:
    steadiness = begun()
    silent = {FEED: actor(ready=False, last_close="timed out")}
    assert steadiness.look(silent, 1.0).outcome is Outcome.WAITING
    assert steadiness.look(silent, 1.0 + PATIENCE_S).outcome is Outcome.WAITING
    verdict = steadiness.look(silent, 1.1 + PATIENCE_S)
    assert verdict.outcome is Outcome.FAILED
    assert f"{FEED} is not at work on live data (timed out)" in verdict.reason


def test_a_feed_may_reconnect_meanwhile_again_and_again() -> None:
    steadiness = begun()
    for round_s in range(0, 60, 9):
        assert steadiness.look({FEED: actor(ready=False)}, round_s).outcome is Outcome.WAITING
        assert steadiness.look({FEED: actor()}, round_s + 8).outcome is Outcome.DONE


@pytest.mark.parametrize("waits", [{"rows_pending": 7}, {"rows_pending": 0, "lag": 7}])
def test_a_writer_is_waited_for_until_it_has_committed_of_what_there_is(waits: dict[str, int]) -> None:
    """Beside the old writer it could not: the old one's batch is always due first."""
    steadiness = begun(WRITER, commits=0)
    assert steadiness.look({WRITER: actor(commits=0, **waits)}, 20.0).outcome is Outcome.WAITING
    assert steadiness.look({WRITER: actor(commits=1, **waits)}, 21.0).outcome is Outcome.DONE
    verdict = steadiness.look({WRITER: actor(commits=0, **waits)}, FIRST_COMMIT_S + 0.1)
    assert verdict.outcome is Outcome.FAILED
    assert f"{WRITER} has committed none of the rows that wait within 35 s" in verdict.reason


def test_a_writer_with_nothing_to_commit_has_proved_enough() -> None:
    assert begun(WRITER).look({WRITER: actor(commits=0, rows_pending=0)}, 1.0).outcome is Outcome.DONE


def test_a_writer_of_older_code_that_does_not_tell_its_commits_is_not_asked() -> None:
    assert begun(WRITER).look({WRITER: actor(rows_pending=3)}, 1.0).outcome is Outcome.DONE
