"""Trap 28: a soak, and a 7-day validation, were declared done without ever having run."""

import dataclasses
from typing import Any

import pytest

from k2ray.soak.samples import Sample
from k2ray.soak.verdict import FAILED, NOT_PROVEN, PASSED, Compared, Run, judge, memory_of, rotations_of, span
from tests.support.runs import HOUR, MB, PLAN, SINCE, an_hour, evidence, feed, samples


def outcomes(run: Run) -> dict[str, str]:
    return {check.name: check.outcome for check in judge(run).checks}


def test_a_run_that_shows_everything_passes() -> None:
    verdict = judge(an_hour())
    assert {check.outcome for check in verdict.checks} == {PASSED}, verdict.checks
    assert verdict.outcome == PASSED


def test_nothing_at_all_is_not_proven() -> None:
    run = Run(SINCE, SINCE, HOUR, PLAN, [])
    found = judge(run)
    assert found.outcome == NOT_PROVEN
    assert PASSED not in {check.outcome for check in found.checks}


def test_a_run_that_ended_early_is_not_proven_and_says_how_long_it_was() -> None:
    run = an_hour(until_s=SINCE + 1200, samples=samples(20), evidence=[evidence(1200, 12_100)], aborted="interrupted")
    verdict = judge(run)
    duration = next(check for check in verdict.checks if check.name == "duration")
    assert (duration.outcome, duration.wanted) == (NOT_PROVEN, "1 h")
    assert duration.found == "ran 20 min; ended early: interrupted"
    assert verdict.outcome == NOT_PROVEN


def test_too_few_samples_are_not_proven_however_good_they_look() -> None:
    assert outcomes(an_hour(samples=samples()[::3]))["samples"] == NOT_PROVEN
    few = an_hour(until_s=SINCE + 1200, asked_s=1200.0, samples=samples(20), evidence=[evidence(1200, 12_100)])
    found = outcomes(few)
    assert found["samples"] == found["memory growth"] == found["rotations"] == NOT_PROVEN


def leak(mb_per_minute: float) -> list[Sample]:
    return [Sample(SINCE + 60 * n, [feed(n, rss_bytes=int((200 + mb_per_minute * n) * MB))]) for n in range(61)]


@pytest.mark.parametrize(("mb_per_minute", "outcome"), [(0.01, PASSED), (0.1, FAILED)])
def test_growth_is_projected_to_a_day(mb_per_minute: float, outcome: str) -> None:
    verdict = judge(an_hour(samples=leak(mb_per_minute)))
    assert {check.name: check.outcome for check in verdict.checks}["memory growth"] == outcome
    assert verdict.growth["feed:binance:0"].mb_per_day == pytest.approx(mb_per_minute * 1440, rel=0.01)


def test_growth_that_the_noise_hides_is_not_proven() -> None:
    noisy = [Sample(SINCE + 60 * n, [feed(n, rss_bytes=(200 + 40 * (n * 7919 % 13)) * MB)]) for n in range(61)]
    assert outcomes(an_hour(samples=noisy))["memory growth"] == NOT_PROVEN


def test_warm_up_and_other_processes_of_an_actor_are_left_out() -> None:
    before = [Sample(SINCE + 60 * n, [feed(n, pid=1, rss_bytes=900 * MB)]) for n in range(20)]
    after = [Sample(SINCE + 60 * n, [feed(n, pid=2, generation=1, rss_bytes=n * MB)]) for n in range(20, 61)]
    (points,) = memory_of(an_hour(samples=before + after)).values()
    assert points[0] == (SINCE + 60 * 30, 30 * MB)
    assert len(points) == 31


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("lost", {"compared": [Compared("trades", 100, 99, 1, 0, 0)]}),
        ("lost", {"compared": [Compared("trades", 100, 101, 0, 0, 1)]}),
        ("lost", {"compared": [], "evidence": [evidence(missing=1)]}),
        ("lost", {"evidence": [evidence(missing=1)]}),
        ("duplicated", {"evidence": [evidence(duplicated=1)]}),
        ("duplicated", {"compared": [Compared("trades", 100, 101, 0, 1, 0)]}),
        ("rate", {"evidence": [evidence(rows=36_000)]}),
        ("seconds with data", {"evidence": [evidence(3596)]}),
        ("memory limit", {"samples": samples(rss_bytes=1001 * MB)}),
        ("memory limit", {"samples": samples()[:30] + samples(restarts_by={"memory": 1})[30:]}),
        ("rotations", {"plan": dataclasses.replace(PLAN, rotate_every_s=600.0)}),
        ("rotations", {"samples": samples()[:1] + samples(rotations={"schedule": 7})[1:]}),
        ("pings", {"plan": dataclasses.replace(PLAN, ping_interval_s=30.0)}),
    ],
)
def test_each_failure_alone_fails_the_run(check: str, changes: dict[str, Any]) -> None:
    run = an_hour(**changes)
    assert outcomes(run)[check] == FAILED
    assert judge(run).outcome == FAILED


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("lost", {"compared": [], "evidence": [evidence(missing=None)]}),
        ("lost", {"compared": [], "evidence": []}),
        ("duplicated", {"compared": [], "evidence": []}),
        ("rate", {"evidence": []}),
        ("seconds with data", {"evidence": []}),
        ("rotations", {"samples": samples(rotations={})[:20]}),
    ],
)
def test_what_nobody_looked_at_is_not_proven(check: str, changes: dict[str, Any]) -> None:
    assert outcomes(an_hour(**changes))[check] == NOT_PROVEN


def test_without_an_exchange_that_counts_pings_the_pongs_must_be_young() -> None:
    def uncounted(age_s: float | None) -> list[Sample]:
        return [Sample(one.at_s, [feed(n, pong_age_s=age_s)]) for n, one in enumerate(samples())]

    assert outcomes(an_hour(samples=uncounted(179.0)))["pings"] == PASSED
    assert outcomes(an_hour(samples=uncounted(240.0)))["pings"] == FAILED
    assert outcomes(an_hour(samples=uncounted(None)))["pings"] == NOT_PROVEN


def test_seconds_in_which_the_exchange_was_silent_are_not_asked_for() -> None:
    with_data = frozenset(range(int(SINCE), int(SINCE) + 3500))
    quiet = an_hour(evidence=[evidence(3500)], sent=with_data)
    assert outcomes(quiet)["seconds with data"] == PASSED
    assert outcomes(an_hour(evidence=[evidence(3500)]))["seconds with data"] == FAILED
    assert outcomes(an_hour(evidence=[evidence(3400)], sent=with_data))["seconds with data"] == FAILED
    assert outcomes(an_hour(sent=frozenset()))["seconds with data"] == NOT_PROVEN


def test_rotations_are_counted_over_restarts_and_from_the_first_sample_on() -> None:
    def at(minute: int, pid: int, **rotations: int) -> Sample:
        return Sample(SINCE + 60 * minute, [feed(minute, pid=pid, rotations=rotations)])

    run = [at(0, 1, schedule=5), at(1, 1, schedule=6, operator=1), at(2, 2), at(3, 2, schedule=2)]
    assert rotations_of(run) == {"schedule": 3, "operator": 1}


def test_a_rotation_for_another_reason_excuses_one_by_schedule() -> None:
    series = [Sample(one.at_s, [feed(n, rotations={"shutdown": n // 50})]) for n, one in enumerate(samples())]
    every_half_hour = dataclasses.replace(PLAN, rotate_every_s=3400.0)
    assert outcomes(an_hour(samples=series, plan=every_half_hour))["rotations"] == NOT_PROVEN


def test_a_feeds_new_process_excuses_a_rotation_by_schedule_as_its_connection_is_new() -> None:
    """Of a week with a few deployments the verdict said "failed" where everything was as planned."""
    processes = [(0, 1), (20, 2), (40, 3)]  # since which minute, which pid: none lives for a whole half-hour

    def at(minute: int) -> Sample:
        pid = max(pid for begun, pid in processes if begun <= minute)
        return Sample(SINCE + 60 * minute, [feed(minute, pid=pid, generation=pid, rotations={})])

    run = an_hour(samples=[at(n) for n in range(61)], plan=dataclasses.replace(PLAN, rotate_every_s=1700.0))
    check = next(check for check in judge(run).checks if check.name == "rotations")
    assert (check.outcome, check.wanted) == (NOT_PROVEN, "0 to 3 by schedule")
    assert "2 feed processes begun anew" in check.found
    one = an_hour(samples=samples(rotations={}), plan=dataclasses.replace(PLAN, rotate_every_s=1700.0))
    assert outcomes(one)["rotations"] == FAILED, "one process that lives on must rotate"


def test_a_feed_that_came_late_has_fewer_rotations_to_show() -> None:
    def at(minute: int) -> Sample:
        first = feed(minute, rotations={"schedule": minute // 30})
        second = feed(minute, name="feed:binance:1", pid=11, rotations={})
        return Sample(SINCE + 60 * minute, [first] if minute < 40 else [first, second])

    plan = dataclasses.replace(PLAN, feeds=2, rotate_every_s=1750.0)
    check = next(
        c for c in judge(an_hour(samples=[at(n) for n in range(61)], plan=plan)).checks if c.name == "rotations"
    )
    assert (check.outcome, check.wanted) == (PASSED, "2 to 4 by schedule")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (45, "45 s"), (1200, "20 min"), (5400, "1 h 30 min"), (604_800, "7 d")]
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_what_was_ended_for_memory_before_the_run_is_not_held_against_it() -> None:
    assert outcomes(an_hour(samples=samples(restarts_by={"memory": 2})))["memory limit"] == PASSED
    crashed = samples()[:30] + samples(restarts_by={"crash": 1})[30:]
    assert outcomes(an_hour(samples=crashed))["memory limit"] == PASSED
