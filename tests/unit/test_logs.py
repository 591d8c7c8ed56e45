import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from k2ray.logs import DAYS_KEPT, configure_logs, get_logger, remove_old_logs
from k2ray.soak.samples import SampleLog

NOW = 1_795_435_200.0
DAY = 86_400.0


@pytest.fixture(autouse=True)
def _own_logger() -> Iterator[None]:
    logger = logging.getLogger("k2ray")
    before, propagates, level = list(logger.handlers), logger.propagate, logger.level
    yield
    for handler in logger.handlers:
        if handler not in before:
            handler.close()
    logger.handlers, logger.propagate = before, propagates
    logger.setLevel(level)


def written(folder: Path, name: str, days_ago: float) -> Path:
    file = folder / name
    file.write_text("{}\n")
    os.utime(file, (NOW - days_ago * DAY, NOW - days_ago * DAY))
    return file


def test_the_logs_of_every_generation_stayed_for_ever(tmp_path: Path) -> None:
    """Months of deployments and replacements: a file for each generation and replica, and nobody to remove them."""
    old = [written(tmp_path, f"feed-binance-0-{number}.jsonl", DAYS_KEPT + 1) for number in range(3)]
    old.append(written(tmp_path, "api-x7ab.jsonl.2", DAYS_KEPT + 1))
    kept = [written(tmp_path, "feed-binance-0-3.jsonl", 1), written(tmp_path, "kafka.log", 99)]
    kept.append(written(tmp_path, "samples-20261123.jsonl", 99))
    remove_old_logs(tmp_path, NOW)
    assert not any(file.exists() for file in old)
    assert all(file.exists() for file in kept)


def test_the_day_of_samples_is_the_day_of_logs(tmp_path: Path) -> None:
    old = written(tmp_path, "writer-trades-1.jsonl", DAYS_KEPT + 1)
    SampleLog(tmp_path).note({}, NOW, 0.0)
    assert not old.exists()


def test_an_actor_whose_log_was_removed_goes_on_in_a_new_one(tmp_path: Path) -> None:
    configure_logs(tmp_path, "writer:trades#1")
    log = get_logger("k2ray.test_logs")
    log.info("one")
    file = tmp_path / "writer-trades-1.jsonl"
    file.unlink()
    log.info("two", rows=3)
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["two"]
