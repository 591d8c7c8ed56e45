"""Which feeds were away, by what the supervisor says of all actors."""

from __future__ import annotations

from typing import Any

from actors.reconnects import Reconnects


def feed(logical: str, generation: int = 1, reconnects: int = 0, *, ready: bool = True) -> dict[str, Any]:
    name = f"{logical}#{generation}"
    return {"name": name, "role": "feed", "ready": ready, "detail": {"reconnects": reconnects, "rotations": {}}}


def status(*feeds: dict[str, Any]) -> dict[str, Any]:
    supervisor = {"name": "supervisor", "role": "supervisor", "ready": True, "detail": {}}
    writer = {"name": "writer:trades#1", "role": "writer", "ready": True, "detail": {}}
    return {"actors": [supervisor, writer, *feeds]}


def test_a_connection_is_told_once_and_again_after_a_reconnect() -> None:
    feeds = Reconnects("binance")
    assert feeds.note({}) == set(), "a supervisor that was just born"
    assert feeds.note(status(feed("feed:binance:0"), feed("feed:binance:1"))) == {0, 1}
    assert feeds.note(status(feed("feed:binance:0"), feed("feed:binance:1"))) == set()
    assert feeds.note(status(feed("feed:binance:0"), feed("feed:binance:1", reconnects=1))) == {1}


def test_a_connection_counts_once_it_delivers() -> None:
    feeds = Reconnects("binance")
    feeds.note(status(feed("feed:binance:0")))
    assert feeds.note(status(feed("feed:binance:0", reconnects=1, ready=False))) == set()
    assert feeds.note(status()) == set()
    assert feeds.note(status(feed("feed:binance:0", reconnects=1))) == {0}


def test_a_feed_that_was_started_anew_was_away() -> None:
    feeds = Reconnects("binance")
    feeds.note(status(feed("feed:binance:0", generation=1, reconnects=3)))
    assert feeds.note(status(feed("feed:binance:0", generation=2))) == {0}


def test_the_second_copy_is_a_connection_of_its_own() -> None:
    feeds = Reconnects("binance")
    feeds.note(status(feed("feed:binance:0"), feed("feed:binance:0:2")))
    assert feeds.note(status(feed("feed:binance:0"), feed("feed:binance:0:2", reconnects=1))) == {0}


def test_feeds_of_other_exchanges_are_not_ours() -> None:
    assert Reconnects("binance").note(status(feed("feed:coinbase:0"))) == set()
