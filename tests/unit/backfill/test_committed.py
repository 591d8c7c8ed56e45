from __future__ import annotations

from pathlib import Path

import pytest
from pyiceberg.catalog.sql import SqlCatalog
from sqlalchemy.exc import OperationalError

from k2ray.backfill.committed import CommittedLedgers
from k2ray.clock import SystemClock
from k2ray.errors import CatalogUnavailable
from tests.support.backfill_world import SYMBOLS, BackfillWorld, until


@pytest.fixture
def world(tmp_path: Path) -> BackfillWorld:
    return BackfillWorld(tmp_path)


def ledgers(world: BackfillWorld) -> CommittedLedgers:
    return CommittedLedgers(world.catalog, world.settings, "binance", SystemClock())


async def test_a_catalog_that_is_away_at_the_first_look_is_not_an_empty_table(
    world: BackfillWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backfill that started while the catalog was locked took a table of a billion rows for one without any."""
    world.publish([1, 2, 5])
    async with world.writing():
        await until(lambda: len(world.stored()) == 3, "a gap is stored")
    first = ledgers(world)

    def locked(*_: object) -> None:
        raise OperationalError("load", {}, Exception("database is locked"))

    with monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "load_table", locked)
        with pytest.raises(CatalogUnavailable):
            first.look("trades")
    assert [(gap.first_id, gap.last_id) for gap in first.look("trades").gaps] == [(3, 4)]


def test_a_table_that_does_not_exist_yet_is_an_empty_look(world: BackfillWorld) -> None:
    look = ledgers(world).look("trades")
    assert look.snapshot_id is None
    assert {symbol for _, symbol in look.streams} == set(SYMBOLS)
