"""Where a feed's batches wait for Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.feed import orphaned_spools, spool_folder
from actors.names import ActorName, wanted_actors
from k2ray.settings import load_settings


@pytest.mark.parametrize(
    ("exchange", "orphans"),
    [
        ({"connections": 2, "redundancy": 2}, []),
        ({"connections": 2}, ["binance-0-2", "binance-1-2"]),
        ({"connections": 1, "redundancy": 2}, ["binance-1", "binance-1-2"]),
        ({}, ["binance-0-2", "binance-1", "binance-1-2"]),
    ],
    ids=str,
)
def test_the_first_feed_inherits_from_those_that_the_settings_no_longer_ask_for(
    tmp_path: Path, exchange: dict[str, int], orphans: list[str]
) -> None:
    for folder in ("binance-0", "binance-0-2", "binance-1", "binance-1-2", "binance_usdm-0", "backfill"):
        (tmp_path / folder).mkdir()
    settings = load_settings(arguments={"data_dir": "d", "exchanges": {"binance": exchange}}, environ={})
    wanted = wanted_actors(settings)
    first = orphaned_spools(tmp_path, ActorName("feed:binance:0", 3), wanted)
    assert [folder.name for folder in first] == orphans
    for other in ("feed:binance:0:2", "feed:binance:1", "feed:binance:1:2"):
        assert orphaned_spools(tmp_path, ActorName(other, 1), wanted) == [], "one heir is enough"


def test_all_generations_of_a_feed_share_a_folder_and_copies_do_not(tmp_path: Path) -> None:
    assert spool_folder(tmp_path, ActorName("feed:binance:0", 1)) == spool_folder(
        tmp_path, ActorName("feed:binance:0", 2)
    )
    assert spool_folder(tmp_path, ActorName("feed:binance:0:2", 1)) == tmp_path / "binance-0-2"
