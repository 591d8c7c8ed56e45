import pytest

from k2ray.sim.pacing import MAX_DEBT_S, BurstPacer, EvenPacer


@pytest.mark.parametrize("rate", [0.5, 3, 333, 300_000])
def test_even_pacing_keeps_the_rate_without_clumps(rate: float) -> None:
    pacer, elapsed, made = EvenPacer(rate), 0.0, 0
    while elapsed < 20:
        due = pacer.due(elapsed)
        assert due <= rate * 0.05 + 1
        made += due
        elapsed += pacer.pause_s(elapsed)
    assert made == pytest.approx(rate * 20, abs=rate * 0.05 + 1)
    assert pacer.forgiven == 0


def test_a_long_stall_is_given_up_and_counted() -> None:
    pacer = EvenPacer(1000)
    assert pacer.due(10.0) == 1000 * MAX_DEBT_S
    assert pacer.forgiven == 10_000 - 1000 * MAX_DEBT_S
    assert pacer.due(10.1) == 100


def test_bursts_keep_the_mean_but_not_the_flow() -> None:
    pacer = BurstPacer(1000, seed=4)
    counts = [pacer.due(0.01 * n) for n in range(1, 20_001)]
    assert sum(counts) == pytest.approx(200_000, rel=0.15)
    assert max(counts) > 300
    again = BurstPacer(1000, seed=4)
    assert [again.due(0.01 * n) for n in range(1, 20_001)] == counts
