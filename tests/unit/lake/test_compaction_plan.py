"""Which files are compacted, and which are left alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from k2ray.lake.compaction_plan import DAY_US, HOUR_US, Job, LiveFile, plan_jobs
from k2ray.settings import Upkeep

DAY = 20_000
MIB = 1_048_576
UPKEEP = Upkeep(compact_target_bytes=128 * MIB, compact_min_files=4, compact_settle_s=300)


def file(hour: int, number: int = 0, size: int = MIB, *, day: int = DAY, exchange: str = "binance") -> LiveFile:
    first = day * DAY_US + hour * HOUR_US + number * 5_000_000
    path = f"{exchange}/{day}/{hour}/{number}/{size}"
    return LiveFile(path, day, exchange, size // 17, size, first, first + 4_000_000, number, "m")


def at(hour: float, day: int = DAY) -> int:
    return day * DAY_US + int(hour * HOUR_US)


def plan(files: list[LiveFile], now_us: int, fresh: frozenset[int] = frozenset()) -> list[Job]:
    return plan_jobs(files, set(fresh), now_us, UPKEEP)


def test_an_hour_waits_until_it_is_over_and_settled() -> None:
    files = [file(11, number) for number in range(10)]
    assert plan(files, at(11.99)) == []
    assert plan(files, at(12) + 299_000_000) == []
    (job,) = plan(files, at(12) + 300_000_000)
    assert job.files == tuple(files)


def test_what_was_just_committed_to_an_old_hour_waits_too() -> None:
    files = [file(11, number) for number in range(10)]
    (job,) = plan(files, at(14), fresh=frozenset({8, 9}))
    assert job.files == tuple(files[:8])
    assert plan(files, at(14), fresh=frozenset(range(7))) == []


def test_a_few_files_of_an_hour_wait_for_the_day_to_be_over() -> None:
    files = [file(hour, number) for hour in (3, 11) for number in range(2)]
    assert plan(files, at(23)) == []
    (job,) = plan(files, at(1, DAY + 1))
    assert job.files == tuple(files)


def test_hours_days_and_exchanges_are_kept_apart() -> None:
    files = [
        file(hour, number, day=day, exchange=exchange)
        for hour in (5, 6)
        for day in (DAY, DAY + 1)
        for exchange in ("binance", "asx")
        for number in range(4)
    ]
    jobs = plan(files, at(7.5, DAY + 1))
    assert len(jobs) == 2 + 4, "the day that is over is one group an exchange, the running one a group an hour"
    for job in jobs:
        assert len({(one.day, one.exchange) for one in job.files}) == 1


def test_large_files_are_left_alone_and_jobs_have_about_the_targets_size() -> None:
    files = [file(11, number, size=3 * MIB) for number in range(200)]
    jobs = plan([*files, file(11, 500, size=64 * MIB)], at(13))
    assert sorted(one.path for job in jobs for one in job.files) == sorted(one.path for one in files)
    assert all(100 * MIB < job.bytes <= 160 * MIB for job in jobs[:-1])
    ends = [max(one.last_us for one in job.files) for job in jobs]
    starts = [min(one.first_us for one in job.files) for job in jobs]
    assert all(start > end for start, end in zip(starts[1:], ends, strict=False)), "their times do not overlap"


def test_a_late_row_does_not_make_a_large_file_be_rewritten() -> None:
    """Backfill that trickles into yesterday would otherwise rewrite 60 MiB for every row."""
    assert plan([file(3, 0, 60 * MIB), file(5, 1, 1000)], at(1, DAY + 1)) == []
    small = [file(5, number, 1000) for number in range(1, 5)]
    (job,) = plan([file(3, 0, 60 * MIB), *small], at(1, DAY + 1))
    assert set(job.files) == set(small)


def test_files_without_bounds_or_from_the_future_are_left_alone() -> None:
    unknown = [LiveFile(f"f{n}", DAY, "binance", 1, 10, 2**62, 2**62, None, "m") for n in range(9)]
    assert plan(unknown, at(13)) == []
    assert plan([file(15, number) for number in range(9)], at(13)) == []


@given(st.lists(st.integers(1, 70 * MIB), min_size=1, max_size=200))
def test_each_row_is_rewritten_a_bounded_number_of_times(sizes: list[int]) -> None:
    """Whatever comes in whatever order: a file at least doubles each time it is rewritten."""
    live: list[LiveFile] = []
    rewritten: dict[str, int] = {}
    for number, size in enumerate(sizes):
        live.append(file(3, number, size))
        for job in plan(live, at(1, DAY + 1)):
            largest = max(one.bytes for one in job.files)
            assert job.bytes >= 2 * largest
            live = [one for one in live if one not in job.files]
            made = file(3, number, job.bytes)
            rewritten[made.path] = 1 + max(rewritten.get(one.path, 0) for one in job.files)
            live.append(made)
    assert max(rewritten.values(), default=0) <= 27
    assert sum(one.bytes for one in live) == sum(sizes)
