"""A ledger file that is gone: damage to the newest head, and nothing but time that passed for an older one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyiceberg.table import Table

from k2ray.errors import OperatorNeeded, TryAgain
from k2ray.lake.catalog import ensure_table, load_table, open_catalog
from k2ray.lake.commit import commit_append
from k2ray.lake.durable import local_path
from k2ray.lake.ledger_file import load_ledger_beside_writer
from k2ray.lake.progress import committed_progress
from k2ray.layout import DataDir
from tests.support.lake import TRADES_TOPIC, append_of, lake_settings, trades


def test_a_ledger_that_expired_while_it_was_read_is_asked_for_anew(tmp_path: Path) -> None:
    settings = lake_settings(tmp_path)
    catalog = open_catalog(settings, DataDir(tmp_path))
    table = ensure_table(catalog, settings, "trades", {TRADES_TOPIC: 1})

    def newest(name: str) -> Table:
        found = load_table(catalog, settings, name)
        assert found is not None
        return found

    commit_append(table, append_of(table, 0, 1, trades([1])))
    held = newest("trades")
    progress = committed_progress(held.metadata)
    assert progress is not None
    assert progress.ledger is not None
    file = local_path(progress.ledger)
    assert file is not None
    Path(file).unlink()
    with pytest.raises(OperatorNeeded, match="is gone"):
        load_ledger_beside_writer(held, progress, "trades", newest)
    commit_append(table, append_of(table, 1, 2, trades([2])))
    with pytest.raises(TryAgain, match="expired while it was read"):
        load_ledger_beside_writer(held, progress, "trades", newest)
