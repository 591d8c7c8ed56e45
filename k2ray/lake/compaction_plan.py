"""Which files are worth rewriting, from what manifests say of them. Pure.

A file is small below half of the target. Small files wait until their hour is over and settled, then the files of one
hour (of their last row) of a partition are one group; once the day is over, all small files of the partition are. A
group is cut, in the order of time, into jobs of about the target's size, so that the new files' times hardly overlap.

Whatever trickles in late (backfill, a replayed spool), no row is rewritten often: a file joins only while it is not
larger than all smaller ones of its group together, so each rewrite at least doubles the size of the file it lies in.

Next in the flow: `compaction.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from k2ray.settings import Upkeep

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

MAX_FILES = 2_000
"""Files of one job: what its commit lists and its verification reads stays bounded."""

MAX_ROWS = 20_000_000
"""Rows of one job, however well they compress: the merge holds a row group of each file of 100,000 rows or more."""

OVERSHOOT = 1.25
"""A job may exceed the target by this much before it is cut; else a last small file would be left over each time."""


@dataclass(frozen=True)
class LiveFile:
    """A data file of the newest snapshot.

    Attributes:
        path: Its location.
        day: Day of its partition, since 1970.
        exchange: Exchange of its partition.
        rows: Rows in it.
        bytes: Its size.
        first_us: Lowest event time.
        last_us: Highest event time.
        added_in: Snapshot that added it.
        manifest: Location of the manifest that names it.
    """

    path: str
    day: int
    exchange: str
    rows: int
    bytes: int
    first_us: int
    last_us: int
    added_in: int | None
    manifest: str


@dataclass(frozen=True)
class Job:
    """Files of one partition that become one."""

    files: tuple[LiveFile, ...]

    @property
    def rows(self) -> int:
        """Rows in all of them."""
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Their size together."""
        return sum(file.bytes for file in self.files)

    @property
    def paths(self) -> frozenset[str]:
        """Their locations: what the job is recognised by."""
        return frozenset(file.path for file in self.files)


def is_small(file: LiveFile, upkeep: Upkeep) -> bool:
    """Return whether a file is worth joining to others."""
    return file.bytes < upkeep.compact_target_bytes // 2


def plan_jobs(files: Iterable[LiveFile], fresh: set[int], now_us: int, upkeep: Upkeep) -> list[Job]:
    """Return the jobs, oldest first.

    Args:
        files: All data files of the newest snapshot.
        fresh: Snapshots younger than `compact_settle_s`: what they added waits.
        now_us: Wall time.
        upkeep: Sizes and times.
    """
    settled_us = now_us - int(upkeep.compact_settle_s * 1_000_000)
    by_day: dict[tuple[int, str], list[LiveFile]] = {}
    by_hour: dict[tuple[int, str, int], list[LiveFile]] = {}
    for file in files:
        if not is_small(file, upkeep) or file.added_in in fresh:
            continue
        hour = file.last_us // HOUR_US
        if (file.day + 1) * DAY_US <= settled_us:
            by_day.setdefault((file.day, file.exchange), []).append(file)
        elif (hour + 1) * HOUR_US <= settled_us:
            by_hour.setdefault((file.day, file.exchange, hour), []).append(file)
    jobs = [job for _, group in sorted(by_day.items()) for job in _jobs(group, 2, upkeep)]
    jobs += [job for _, group in sorted(by_hour.items()) for job in _jobs(group, upkeep.compact_min_files, upkeep)]
    return jobs


def _jobs(group: list[LiveFile], min_files: int, upkeep: Upkeep) -> Iterable[Job]:
    joined = _worth_joining(group)
    if len(joined) < min_files:
        return
    for run in _runs(sorted(joined, key=lambda file: (file.first_us, file.path)), upkeep.compact_target_bytes):
        kept = {file.path for file in _worth_joining(run)}
        if len(kept) > 1:
            yield Job(tuple(file for file in run if file.path in kept))


def _worth_joining(group: Sequence[LiveFile]) -> list[LiveFile]:
    """Leave out the largest as long as it is larger than all others together."""
    by_size = sorted(group, key=lambda file: (file.bytes, file.path))
    total = sum(file.bytes for file in by_size)
    while by_size and by_size[-1].bytes > total - by_size[-1].bytes:
        total -= by_size.pop().bytes
    return by_size


def _runs(files: Sequence[LiveFile], target: int) -> Iterable[list[LiveFile]]:
    run: list[LiveFile] = []
    size = rows = 0
    for file in files:
        too_large = size >= target or size + file.bytes > target * OVERSHOOT
        if run and (too_large or len(run) >= MAX_FILES or rows + file.rows > MAX_ROWS):
            yield run
            run, size, rows = [], 0, 0
        run.append(file)
        size += file.bytes
        rows += file.rows
    yield run
