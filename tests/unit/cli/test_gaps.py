"""`k2ray gaps` over a table whose system is down."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from k2ray.cli.gaps import COMPLETE, MISSING, NOTHING, gaps
from tests.support.backfill_world import SYMBOLS, BackfillWorld, lost_filled_and_open, until


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gaps")
    asyncio.run(lost_filled_and_open(BackfillWorld(folder / "data")))
    return write_config(folder)


def write_config(folder: Path) -> Path:
    sections: dict[str, Any] = {
        "data_dir": str(folder / "data"),
        "exchanges": {"binance": {"symbols": list(SYMBOLS), "channels": ["trades"]}},
        "api": {"port": 9},  # nobody listens on the discard port
    }
    file = folder / "k2ray.yaml"
    file.write_text(yaml.safe_dump(sections))
    return file


def test_what_is_missing_is_shown_with_its_state(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gaps(config, as_json=False, symbols=None) == MISSING
    shown = capsys.readouterr().out
    lines = {line.split()[1]: line for line in shown.splitlines() if line.startswith("binance")}
    assert "no: 2 ids are missing and not fetched yet" in shown
    assert "lost" in shown
    assert set(lines) == {"BTCUSDT", "ETHUSDT"}


def test_json_is_what_the_api_answers(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gaps(config, as_json=True, symbols="BTCUSDT") == MISSING
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["first_id"], row["last_id"], row["proven_to"]["id"]) == (1, 9, 2)
    assert [(piece["first_id"], piece["state"]) for piece in row["missing"]] == [(3, "lost")]


def test_a_table_without_gaps_is_complete_and_none_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    assert gaps(config, as_json=False, symbols=None) == NOTHING

    async def write() -> None:
        world = BackfillWorld(tmp_path / "data")
        world.publish(range(1, 10))
        async with world.writing():
            await until(world.stored, "rows are stored")

    asyncio.run(write())
    assert gaps(config, as_json=False, symbols=None) == COMPLETE
    assert "yes" in capsys.readouterr().out
