from __future__ import annotations

import pytest

from actors.rates import Rate


def test_a_steady_pace_is_found_in_a_few_looks() -> None:
    rate = Rate()
    seen = [rate.note(second * 1000, float(second)) for second in range(30)]
    assert seen[0] == 0
    assert seen[-1] == pytest.approx(1000, rel=0.01)


def test_a_total_that_starts_anew_is_no_negative_pace() -> None:
    rate = Rate()
    rate.note(0, 0.0)
    assert rate.note(1000, 10.0) == pytest.approx(100)
    assert rate.note(5, 11.0) == pytest.approx(100)
    assert rate.note(105, 12.0) >= 100
