"""Frames recorded from real exchanges: no part of the repository. Where they are not, tests skip and say so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("K2TEST_FRAMES") or Path(__file__).parents[2].parent / "shared" / "data" / "frames")


def recording(exchange: str) -> Path:
    """Return an exchange's recording: JSON lines of `received` and `frame`, or skip the test.

    Never a failure, K2TEST_REQUIRE_ALL or not: no machine can install them.
    """
    file = FOLDER / f"{exchange}.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"no recorded frames: {file} is not there (K2TEST_FRAMES names the folder)")
    return file
