from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from k2ray.memory import MB, MemoryTrend, Sample, Trend, fit

TIMES = st.lists(st.integers(0, 100_000), min_size=3, max_size=150, unique=True).map(sorted)


def samples(values: list[float], every_s: float = 30.0) -> list[Sample]:
    return [Sample(1_000.0 + number * every_s, int(value)) for number, value in enumerate(values)]


def trend_of(values: list[float], *, window: int = 120, warmup_s: float = 0.0) -> MemoryTrend:
    trend = MemoryTrend(window, warmup_s)
    for sample in samples(values):
        trend.add(sample)
    return trend


@given(times=TIMES, data=st.data())
@settings(max_examples=200, deadline=None)
def test_the_line_is_numpys(times: list[int], data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 10**10), min_size=len(times), max_size=len(times)))
    assume(len(set(values)) > 1)
    found = fit([(float(at), float(value)) for at, value in zip(times, values, strict=True)])
    slope, offset = np.polyfit(np.array(times) - np.mean(times), values, 1)
    fitted = slope * (np.array(times) - np.mean(times)) + offset
    variance = np.sum((np.array(values) - np.mean(values)) ** 2)
    r2 = 1 - np.sum((np.array(values) - fitted) ** 2) / variance
    scale = max(values) / max(times[-1] - times[0], 1)
    assert found.bytes_per_hour / 3600 == pytest.approx(slope, rel=1e-6, abs=1e-6 * scale)
    assert found.r2 == pytest.approx(max(r2, 0.0), abs=1e-6)


@given(times=TIMES, slope=st.integers(-1_000_000, 1_000_000), offset=st.integers(0, 10**9))
def test_a_straight_line_is_found_as_it_is(times: list[int], slope: int, offset: int) -> None:
    found = fit([(float(at), float(offset + slope * at)) for at in times])
    assert found.bytes_per_hour == pytest.approx(slope * 3600, rel=1e-6, abs=1e-3)
    assert found.r2 == pytest.approx(1.0 if slope else 0.0, abs=1e-6)


@given(
    values=st.lists(st.floats(0, 1e12), min_size=2, max_size=200),
    shift=st.floats(0, 1e6),
)
@settings(deadline=None)
def test_the_score_is_between_0_and_1_and_does_not_depend_on_when(values: list[float], shift: float) -> None:
    points = [(number * 30.0, value) for number, value in enumerate(values)]
    here, later = fit(points), fit([(at + shift, value) for at, value in points])
    assert 0.0 <= here.leak_score <= 1.0
    assert later.leak_score == pytest.approx(here.leak_score, abs=1e-3)


def test_the_score_is_the_slope_in_50_mb_per_hour_times_r2() -> None:
    assert Trend(25 * MB, 0.8).leak_score == pytest.approx(0.4)
    assert Trend(500 * MB, 0.8).leak_score == pytest.approx(0.8)
    assert Trend(-500 * MB, 1.0).leak_score == 0.0


def test_one_sample_or_one_moment_is_no_trend() -> None:
    assert fit([]) == Trend()
    assert fit([(5.0, 7.0)]).leak_score == 0.0
    assert fit([(5.0, 7.0), (5.0, 9.0)]).leak_score == 0.0


def test_a_steady_leak_of_60_mb_an_hour_is_one() -> None:
    chance = random.Random(3)
    found = trend_of([200 * MB + 0.5 * MB * number + chance.gauss(0, 2 * MB) for number in range(120)])
    assert found.complete
    assert found.trend.leak_score > 0.9


@pytest.mark.parametrize(
    "shape",
    [
        lambda number: 200 * MB,
        lambda number: 200 * MB + 80 * MB * (number % 2),
        lambda number: 200 * MB + 100 * MB * math.sin(number / 7),
        lambda number: 200 * MB + 0.1 * MB * number,
        lambda number: 300 * MB - 1 * MB * number,
        lambda number: 200 * MB + (150 * MB if number > 100 else 0),
    ],
    ids=["flat", "sawtooth", "wave", "12 MB an hour", "shrinking", "one step up"],
)
def test_what_does_not_grow_steadily_is_none(shape: object) -> None:
    assert callable(shape)
    found = trend_of([shape(number) for number in range(120)])
    assert found.complete
    assert found.trend.leak_score < 0.6


@pytest.mark.parametrize("tau_s", [60, 180, 300])
def test_a_process_that_warms_up_is_never_taken_for_a_leak(tau_s: float) -> None:
    trend = MemoryTrend(120, warmup_s=600)
    for sample in samples([120 * MB + 100 * MB * (1 - math.exp(-number * 30 / tau_s)) for number in range(600)]):
        trend.add(sample)
        assert not (trend.complete and trend.trend.leak_score > 0.8)


def test_less_than_a_window_is_not_enough() -> None:
    assert not trend_of([number * 10.0 * MB for number in range(119)]).complete
    assert not trend_of([number * 10.0 * MB for number in range(139)], warmup_s=601).complete
    assert trend_of([number * 10.0 * MB for number in range(141)], warmup_s=600).complete


@given(count=st.integers(0, 400), window=st.integers(2, 50))
def test_only_the_window_is_kept(count: int, window: int) -> None:
    found = trend_of([number * 1.0 * MB for number in range(count)], window=window)
    assert found.trend.samples == min(count, window)
    assert (found.newest is None) == (count == 0)
