"""The same commits over a PostgreSQL catalog, by several writers at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from k2ray.clock import ManualClock
from k2ray.errors import CatalogUnavailable, WorldMoved
from k2ray.lake.catalog import ensure_table, open_catalog
from k2ray.lake.commit import commit_append
from k2ray.lake.progress import committed_progress
from k2ray.lake.upkeep import TableUpkeep
from k2ray.lake.writer import TableWriter
from k2ray.layout import DataDir
from k2ray.settings import Settings, load_settings
from tests.conftest import lacking
from tests.support.lake import (
    QUOTES_TOPIC,
    TRADES_TOPIC,
    MemoryLetters,
    MemoryLog,
    MemoryReader,
    append_of,
    stored_ids,
    trades,
)
from tests.support.postgres import lacking_postgres, postgres

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    reason = lacking_postgres()
    if reason:
        lacking(reason)
    with postgres() as found:
        yield found


def settings_for(folder: Path, uri: str, namespace: str) -> Settings:
    lake = {"catalog": {"type": "sql", "uri": uri}, "namespace": namespace, "commit": {"interval_s": 3600}}
    return load_settings(arguments={"data_dir": str(folder), "lake": lake}, environ={})


def test_a_writer_stores_exactly_once_over_postgresql(tmp_path: Path, uri: str) -> None:
    settings = settings_for(tmp_path, uri, "once")
    log = MemoryLog({TRADES_TOPIC: 2, QUOTES_TOPIC: 2})
    for start in range(0, 100, 10):
        log.publish((TRADES_TOPIC, 0), trades(range(start, start + 20)))
        writer = TableWriter(settings, DataDir(tmp_path), "trades", "", reader=MemoryReader(log), letters=MemoryLetters)
        assert writer.drain()
        writer.close()
    catalog = open_catalog(settings, DataDir(tmp_path))
    table = ensure_table(catalog, settings, "trades")
    assert stored_ids(table) == list(range(110))
    # Rows of a past hour lie there to be compacted: the tag waits for that, but not in an hour's last minutes.
    late = ManualClock(now_us=time.time_ns() // 3_600_000_000_000 * 3_600_000_000 + 50 * 60_000_000)
    assert TableUpkeep(settings, DataDir(tmp_path), "trades", clock=late, catalog=catalog).step().tagged
    assert not (tmp_path / "catalog.db").exists()
    catalog.close()


def test_writers_that_race_over_postgresql_store_every_offset_once(tmp_path: Path, uri: str) -> None:
    """Three writers, each sure that it is the only one: whoever loses finds the world moved, and nothing is doubled."""
    settings = settings_for(tmp_path, uri, "race")
    target = 12
    # Two that create the catalog's own tables at once both succeed, but SQLAlchemy leaves the loser's connection to
    # the garbage collector, which says so.
    open_catalog(settings, DataDir(tmp_path)).close()

    def race(_: int) -> int:
        catalog = open_catalog(settings, DataDir(tmp_path))
        table = ensure_table(catalog, settings, "trades", {TRADES_TOPIC: 1})
        won = 0
        while True:
            table.refresh()
            progress = committed_progress(table.metadata)
            assert progress is not None
            start = progress.offset((TRADES_TOPIC, 0)).next
            if start >= target:
                catalog.close()
                return won
            try:
                commit_append(table, append_of(table, start, start + 1))
                won += 1
            except (WorldMoved, CatalogUnavailable):
                continue

    with ThreadPoolExecutor(3) as pool:
        won = list(pool.map(race, range(3)))
    catalog = open_catalog(settings, DataDir(tmp_path))
    assert sum(won) == target
    assert stored_ids(ensure_table(catalog, settings, "trades")) == list(range(target))
    catalog.close()
