from __future__ import annotations

from typing import Any

from rich.console import Console

from k2ray.cli.picture import draw, reasons_of


def actor(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "role": name.split(":")[0],
        "state": "running",
        "ready": True,
        "pid": 12345,
        "restarts": 0,
        "last_reason": "",
        "rss_bytes": 150e6,
        "rate": 1234.0,
        "lag_trades": None,
        "data_age_s": None,
        "memory": None,
        "detail": {},
        **changes,
    }


def answer(*actors: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"actors": list(actors), "stopping": False, "broker": None, **changes}


def drawn(*actors: dict[str, Any], **changes: Any) -> str:
    picture = {"api": "a", "kafka": "k", "ray": "r", "level": 0, "release": None, "reasons": [], "gaps": [], **changes}
    console = Console(width=240, force_terminal=False)
    with console.capture() as captured:
        console.print(draw({**picture, "actors": list(actors)}))
    return captured.get()


def test_a_system_that_works_has_no_reasons() -> None:
    assert reasons_of(answer(actor("feed:binance:0#1"), actor("writer:trades#1"), broker={"alive": True})) == []


def test_a_symbol_that_the_exchange_does_not_know_is_a_reason_said_once() -> None:
    """A typo in the settings was a line in a log; the status said healthy."""
    first = actor("feed:binance:0#3", detail={"unknown_symbols": ["BTCUSTD"]})
    second = actor("feed:binance:0:2#1", detail={"unknown_symbols": ["BTCUSTD"]})
    third = actor("feed:binance:1#1", detail={"unknown_symbols": ["ETHUSTD"]})
    fourth = actor("feed:binance:2#1", detail={"unknown_symbols": []})
    assert reasons_of(answer(first, second, third, fourth)) == ["symbols unknown to binance: BTCUSTD, ETHUSTD"]


def test_each_kind_of_trouble_is_a_reason() -> None:
    connecting = {"connection": "connecting", "last_close": "certificate has expired"}
    reasons = reasons_of(
        answer(
            actor("feed:binance:0#3", ready=False, detail=connecting),
            actor("feed:binance:1#1", ready=False, detail={"connection": "open"}),
            actor("writer:trades#1", state="failed", last_reason="OperatorNeeded: another topic id"),
            actor("writer:quotes#1", detail={"trouble": "CatalogUnavailable: database is locked"}),
            stopping=True,
            broker={"alive": False, "last_reason": "no room on the disk"},
        )
    )
    assert reasons == [
        "feed:binance:0#3 records nothing, its connection is connecting: certificate has expired",
        "feed:binance:1#1 records nothing, its connection is open: no data yet",
        "writer:trades#1 is failed: OperatorNeeded: another topic id",
        "writer:quotes#1 is in trouble: CatalogUnavailable: database is locked",
        "the system is being stopped",
        "the local broker does not run: no room on the disk",
    ]


def test_an_actor_that_only_starts_is_not_blamed_for_its_connection() -> None:
    (reason,) = reasons_of(answer(actor("feed:binance:0#3", state="backoff", ready=False, last_reason="died")))
    assert reason == "feed:binance:0#3 is backoff: died"


def test_a_feeds_line_shows_its_connection_and_rotations() -> None:
    detail = {"connection": "open", "connected_s": 11_520.0, "rotating": True, "rotations": {"schedule": 5, "stale": 1}}
    line = next(line for line in drawn(actor("feed:binance:0#7", detail=detail)).splitlines() if "#7" in line)
    assert "open 3.2 h, rotating" in line
    assert line.split()[-1] == "6"


def test_short_connections_are_shown_in_seconds_and_minutes() -> None:
    for seconds, shown in ((7.4, "open 7 s"), (900.0, "open 15 min")):
        assert shown in drawn(actor("feed:binance:0#7", detail={"connection": "open", "connected_s": seconds}))


def test_a_leak_score_is_shown_once_its_window_is_full() -> None:
    score = {"leak_score": 0.873, "complete": True}
    assert "0.87" in drawn(actor("writer:trades#1", memory=score))
    assert "0.87" not in drawn(actor("writer:trades#1", memory={**score, "complete": False}))


def test_what_does_not_run_has_no_address() -> None:
    assert "kafka does not run   ray does not run" in drawn(kafka=None, ray=None, reasons=["Ray does not run"])


def test_gaps_are_listed_with_their_ids() -> None:
    gap = {"exchange": "binance", "symbol": "BTCUSDT", "sequence_space": "", "first_id": 10, "last_id": 1_009}
    text = drawn(actor("writer:trades#1", detail={"open_gaps": 1}), gaps=[gap])
    assert "1 open gaps" in text
    assert "binance BTCUSDT" in text
    assert "1,000" in text
