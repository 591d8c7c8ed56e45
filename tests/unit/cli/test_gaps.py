"""`k2ray gaps` over a table whose system is down."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from k2ray.cli.app import app
from k2ray.cli.gaps import COMPLETE, MISSING, NOTHING, gaps
from k2ray.errors import BadRequest, CatalogUnavailable
from tests.support.backfill_world import SYMBOLS, BackfillWorld, lost_filled_and_open, until


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gaps")
    asyncio.run(lost_filled_and_open(BackfillWorld(folder / "data")))
    return write_config(folder)


def ask(config: Path, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Run the command; returns its exit status and what it printed as JSON."""
    done = CliRunner().invoke(app, ["gaps", "--json", "--config", str(config), *options], catch_exceptions=False)
    return done.exit_code, json.loads(done.stdout)


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
    assert gaps(config, as_json=False, question={}) == MISSING
    shown = capsys.readouterr().out
    lines = {line.split()[1]: line for line in shown.splitlines() if line.startswith("binance")}
    assert "no: 2 ids are missing and not fetched yet" in shown
    assert "lost" in shown
    assert set(lines) == {"BTCUSDT", "ETHUSDT"}


def test_json_is_what_the_api_answers(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gaps(config, as_json=True, question={"symbols": "BTCUSDT"}) == MISSING
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["first_id"], row["last_id"], row["proven_to"]["id"]) == (1, 9, 2)
    assert [(piece["first_id"], piece["state"]) for piece in row["missing"]] == [(3, "lost")]


def test_a_range_of_ids_is_judged_by_itself(config: Path) -> None:
    status, (row,) = ask(config, "--symbols", "BTCUSDT", "--channel", "trades", "--first-id", "4", "--last-id", "9")
    assert (status, row["complete"], row["missing"]) == (COMPLETE, True, [])
    status, (row,) = ask(config, "--exchange", "binance", "--symbols", "BTCUSDT", "--first-id", "2", "--last-id", "3")
    assert (status, row["missing_ids"]) == (MISSING, 1)


@pytest.mark.parametrize(
    "question",
    [{"symbols": "NOPEUSDT"}, {"exchange": "nowhere"}, {"channel": "candles"}, {"first_id": "x"}, {"start": "today"}],
    ids=str,
)
def test_what_is_not_there_or_means_nothing_is_said(config: Path, question: dict[str, str | None]) -> None:
    with pytest.raises(BadRequest, match=next(iter(question))):
        gaps(config, as_json=True, question=question)


def test_storage_that_does_not_answer_is_not_an_empty_table(config: Path, tmp_path: Path) -> None:
    """Whoever asks whether all is there is never told that nothing was recorded because it could not be read."""
    shutil.copytree(config.parent, tmp_path / "copy")
    shutil.move(config.parent / "data", tmp_path / "away")  # the table's metadata names its own absolute path
    try:
        with pytest.raises(CatalogUnavailable, match="trades"):
            gaps(write_config(tmp_path / "copy"), as_json=False, question={})
    finally:
        shutil.move(tmp_path / "away", config.parent / "data")


def test_a_table_without_gaps_is_complete_and_none_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    assert gaps(config, as_json=False, question={}) == NOTHING

    async def write() -> None:
        world = BackfillWorld(tmp_path / "data")
        world.publish(range(10))
        async with world.writing():
            await until(world.stored, "rows are stored")

    asyncio.run(write())
    assert gaps(config, as_json=False, question={}) == COMPLETE
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("binance"))
    assert line.split()[:5] == ["binance", "BTCUSDT", "trades", "0", "9"], "the first id may be 0"
    assert "yes" in line
