"""The last test of a whole session: every metric that is declared was moved by a test before it."""

from __future__ import annotations

import pytest

from tests.support.moved import is_whole, unmoved


@pytest.mark.last
def test_every_metric_moved(pytestconfig: pytest.Config) -> None:
    """Trap 27: consumer-lag metrics were never set; alerts and dashboards on such a metric are silent for ever."""
    if not is_whole(pytestconfig):
        pytest.skip("only a whole session can tell")
    still = unmoved()
    assert not still, f"no test makes these move: {', '.join(still)}"
