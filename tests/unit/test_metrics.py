"""Every metric is documented."""

from __future__ import annotations

from pathlib import Path

from tests.support.documentation import metric_rows

ROOT = Path(__file__).parents[2]


def test_every_metric_is_documented() -> None:
    documented = (ROOT / "docs" / "operations.md").read_text()
    rows = metric_rows()
    assert len(rows) > 10
    for row in rows:
        assert row in documented, f"docs/operations.md lacks this row:\n{row}"
