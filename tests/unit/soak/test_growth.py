import math
import random

import pytest

from k2ray.soak.growth import DAY_S, LEAST_SAMPLES, MB, project, student_quantile


def minutes(count: int, mb_per_day: float, noise_mb: float = 0.0, seed: int = 1, keep: float = 0.0) -> list:
    """Return samples a minute apart; `keep` is how much of the last minute's noise stays."""
    chance, noise, points = random.Random(seed), 0.0, []
    for n in range(count):
        noise = keep * noise + chance.gauss(0, noise_mb)
        points.append((n * 60.0, 200 * MB + mb_per_day * MB * n * 60 / DAY_S + noise * MB))
    return points


@pytest.mark.parametrize(("freedom", "exact"), [(3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)])
def test_students_quantiles_are_those_of_the_tables(freedom: int, exact: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(exact, rel=0.02)


def test_steady_growth_is_found_exactly() -> None:
    growth = project(minutes(60, 120.0))
    assert growth.mb_per_day == pytest.approx(120)
    assert growth.high - growth.low < 1
    assert growth.span_s == 59 * 60


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    for keep, least in ((0.0, 0.90), (0.6, 0.80)):
        hits = 0
        for seed in range(200):
            growth = project(minutes(120, 30.0, noise_mb=0.5, seed=seed, keep=keep))
            hits += growth.low <= 30.0 <= growth.high
        assert hits / 200 >= least, f"noise that stays by {keep}"


def test_a_step_is_no_leak_and_a_leak_grows_in_either_half() -> None:
    step = [(at, size + (28 * MB if at > 1900 else 0)) for at, size in minutes(50, 0.0, noise_mb=3.0, seed=2)]
    assert project(step).low > 50
    assert project(step).least_half < 50
    assert project(minutes(50, 600.0, noise_mb=1.0)).least_half > 50


def test_noise_that_stays_makes_the_interval_wider() -> None:
    fresh, staying = project(minutes(200, 0, 1.0)), project(minutes(200, 0, 1.0, keep=0.9))
    assert staying.effective < fresh.effective / 4
    assert staying.high - staying.low > 3 * (fresh.high - fresh.low)


def test_too_few_samples_say_nothing() -> None:
    growth = project(minutes(LEAST_SAMPLES - 1, 5000.0))
    assert not growth.known
    assert math.isinf(growth.high)
    assert not project([]).known
