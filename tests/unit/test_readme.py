"""The README shows the results that are in the repository, and names only targets and commands that there are."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.render import with_results
from k2ray.cli.app import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_results_were_hard_coded() -> None:
    """Trap 28: hard-coded results. Write them anew with `python -m benchmarks.render`."""
    assert with_results(README) == README


def test_the_readme_names_targets_that_there_are() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", README)) <= targets


def test_the_readme_names_commands_that_there_are() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"bin/k2ray ([a-z]+)", README)) <= commands
