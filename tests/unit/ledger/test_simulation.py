"""A randomised market log against its truth, and decisions that do not depend on how the log is cut."""

from __future__ import annotations

import pytest

from k2ray.ledger import encode_ledger
from tests.support.market_log import Run, hidden_restarts, judge, market_log, run

SEEDS = 25


def same_decisions(one: Run, other: Run) -> bool:
    return one.keep == other.keep and all(
        left == right for keep, left, right in zip(one.keep, one.spaces, other.spaces, strict=True) if keep
    )


@pytest.mark.parametrize("table", ["trades", "quotes"])
def test_nothing_lost_doubled_or_mislabelled(table: str) -> None:
    judged = 0
    for seed in range(SEEDS):
        rows, params = market_log(seed, table)
        verdict = judge(rows, run(rows, params, seed, restart=True))
        assert not verdict, f"seed {seed}: {verdict}"
        judged += len({(row.symbol, row.base) for row in rows} - hidden_restarts(rows))
    assert judged > 1.5 * SEEDS  # the truth's own blind spots stay rare


@pytest.mark.parametrize("table", ["trades", "quotes"])
def test_decisions_do_not_depend_on_batches_restarts_or_copies(table: str) -> None:
    for seed in range(100, 103):
        rows, params = market_log(seed, table)
        one_by_one = run(rows, params, seed, largest=2)
        large = run(rows, params, seed, largest=3_000, restart=True)
        assert same_decisions(one_by_one, large), f"seed {seed}"
        assert encode_ledger(one_by_one.ledger, {}) == encode_ledger(large.ledger, {}), f"seed {seed}"
