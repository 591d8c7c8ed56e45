from __future__ import annotations

from actors.collected import KEPT_S, REPLICA_KEPT_S, Collected
from actors.names import ActorName

SIX, SEVEN = ActorName("feed:binance:0", 6), ActorName("feed:binance:0", 7)


def test_a_restarted_actor_goes_on_under_the_same_name() -> None:
    collected = Collected()
    collected.note(SIX, "six", 0.0)
    collected.keep({SEVEN})
    assert collected.texts(1.0) == {}
    collected.note(SEVEN, "seven", 2.0)
    assert collected.texts(2.0) == {"feed:binance:0": "seven"}


def test_the_older_of_two_generations_is_shown_as_leaving_whoever_answers_first() -> None:
    """Two processes that take turns in one series are a counter reset at every scrape."""
    collected = Collected()
    collected.note(SIX, "six", 0.0)
    collected.note(SEVEN, "seven", 0.0)
    both = {"feed:binance:0#6": "six", "feed:binance:0": "seven"}
    assert collected.texts(0.0) == both
    collected.note(SIX, "six", 5.0)  # seven is too busy to answer this time
    assert collected.texts(5.0) == both
    collected.keep({SEVEN})
    assert collected.texts(5.0) == {"feed:binance:0": "seven"}


def test_a_hung_actor_is_shown_for_a_while_with_its_age() -> None:
    collected = Collected()
    collected.note(SIX, "six", 0.0)
    assert collected.texts(KEPT_S) == {"feed:binance:0": "six"}
    assert collected.texts(KEPT_S + 1) == {}
    assert collected.ages_s(KEPT_S + 1) == {"feed:binance:0": KEPT_S + 1}


def test_replicas_keep_their_slots_and_new_ones_take_free_slots() -> None:
    collected = Collected()
    assert collected.note_replica("x7ab", "a", 0.0) == "api:0"
    assert collected.note_replica("p09q", "b", 0.0) == "api:1"
    assert collected.note_replica("x7ab", "c", 1.0) == "api:0"
    assert collected.texts(1.0) == {"api:0": "c", "api:1": "b"}
    late = REPLICA_KEPT_S + 0.5
    assert collected.note_replica("zz12", "d", late) == "api:1"
    assert collected.texts(late) == {"api:0": "c", "api:1": "d"}
    assert collected.ages_s(late) == {"api:0": late - 1.0, "api:1": 0.0}


def test_replicas_say_who_they_are_and_what_they_hold() -> None:
    collected = Collected()
    collected.note_replica("x7ab/4711", "# HELP k2ray_actor_rss_bytes R.\nk2ray_actor_rss_bytes 2.5e+08\n", 0.0)
    collected.note_replica("of-an-older-release", "k2ray_http_requests_total 1\n", 1.0)
    assert collected.replicas(1.0) == [
        {"name": "api:0", "pid": 4711, "rss_bytes": 250_000_000},
        {"name": "api:1", "pid": None, "rss_bytes": None},
    ]
    assert [one["name"] for one in collected.replicas(REPLICA_KEPT_S + 0.5)] == ["api:1"]


def test_a_year_of_deployments_leaves_a_handful_of_names() -> None:
    collected = Collected()
    names = set()
    for deployment in range(365):
        now_s = deployment * 86_400.0
        for replica in range(2):
            names.add(collected.note_replica(f"{deployment}-{replica}", "text", now_s))
        for replica in range(2):  # the next ones start beside them
            names.add(collected.note_replica(f"{deployment}+{replica}", "text", now_s + 5))
    assert names == {"api:0", "api:1", "api:2", "api:3"}
