from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.names import ActorName, drain_stage, wanted_actors
from k2ray.errors import BadInput
from k2ray.settings import load_settings

PARTS = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=8)


@given(st.lists(PARTS, min_size=1, max_size=3), st.integers(1, 10**6))
def test_a_name_is_read_back_as_it_was_written(parts: list[str], generation: int) -> None:
    name = ActorName(":".join(parts), generation)
    assert ActorName.parse(str(name)) == name
    assert (name.role, name.owns) == (parts[0], tuple(parts[1:]))


@pytest.mark.parametrize("text", ["supervisor", "feed:binance:0", "#1", "feed#", "feed#x", "SERVE_CONTROLLER_ACTOR"])
def test_names_of_others_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        ActorName.parse(text)


def test_wanted_actors_follow_from_the_settings() -> None:
    exchanges = {"binance": {"channels": ["trades", "agg_trades"], "connections": 2}}
    settings = load_settings(arguments={"exchanges": exchanges}, environ={})
    feeds = ["feed:binance:0", "feed:binance:1"]
    wanted = ["serializer", "writer:trades", *feeds, "backfill:binance", "upkeep:trades"]
    assert wanted_actors(settings) == wanted


@pytest.mark.parametrize(
    "section", [{"backfill": {"enabled": False}}, {"exchanges": {"binance": {"channels": ["quotes"]}}}]
)
def test_a_backfill_is_wanted_only_where_ids_prove_gaps(section: dict[str, object]) -> None:
    names = wanted_actors(load_settings(arguments=section, environ={}))
    assert not [name for name in names if name.startswith("backfill")]


def test_a_redundant_feed_is_two_actors() -> None:
    exchanges = {"binance": {"channels": ["trades"], "connections": 2, "redundancy": 2}}
    settings = load_settings(arguments={"exchanges": exchanges}, environ={})
    feeds = [name for name in wanted_actors(settings) if name.startswith("feed:")]
    assert feeds == ["feed:binance:0", "feed:binance:0:2", "feed:binance:1", "feed:binance:1:2"]
    assert [ActorName(name, 1).owns for name in feeds[:2]] == [("binance", "0"), ("binance", "0", "2")]


def test_quotes_get_a_writer_of_their_own() -> None:
    """Trap 14: the consumer always wrote trades."""
    assert {"writer:trades", "writer:quotes"} <= set(wanted_actors(load_settings(environ={})))


def test_producers_are_drained_before_those_who_store() -> None:
    assert (
        drain_stage("feed")
        < drain_stage("backfill")
        < drain_stage("writer")
        < drain_stage("upkeep")
        < drain_stage("somebody new")
    )
