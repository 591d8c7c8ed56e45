"""The page of faults names tests that exist, in the column of the target that runs them, and every chaos case."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "faults.md"
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)")

FULL_ALONE = "chaos_full"
"""The marker of what only `make chaos` runs."""


def columns() -> Iterator[tuple[int, str, str]]:
    """Return column (1: `make test`, 2: `make chaos` alone), file and test of all that the page names."""
    for line in PAGE.read_text().splitlines():
        for column, cell in enumerate(line.split("|")[2:4], start=1):
            for path, name in NAMED.findall(cell):
                yield column, path, name


def marked(path: str, name: str) -> tuple[bool, bool]:
    """Return whether some of a test's cases run in `make test`, and whether some run in `make chaos` alone."""
    module = ast.parse((TESTS / path).read_text())
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    (found,) = [function for function in functions if function.name == name]
    of_module = [
        ast.unparse(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    decorators = [ast.unparse(decorator) for decorator in found.decorator_list]
    if any(f"mark.{FULL_ALONE}" in text for text in of_module) or f"pytest.mark.{FULL_ALONE}" in decorators:
        return False, True
    mixed = any(FULL_ALONE in text or "marked(" in text for text in decorators)
    return True, mixed


def test_every_test_that_the_page_names_exists_and_runs_where_it_says() -> None:
    wrong = [
        (path, name, column) for column, path, name in columns() if not marked(path, name)[0 if column == 1 else 1]
    ]
    assert wrong == []


def test_every_chaos_test_is_on_the_page() -> None:
    named = {(path, name) for _, path, name in columns()}
    assert len(named) > 40
    there = {
        (f"chaos/{file.name}", node.name)
        for file in (TESTS / "chaos").glob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }
    assert there - named == set(), "name them in docs/faults.md"
