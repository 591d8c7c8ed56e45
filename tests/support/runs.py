"""Runs for tests of verdicts and reports: an hour in which everything is as it should be, to be changed."""

from __future__ import annotations

from typing import Any

from k2ray.soak.evidence import Evidence
from k2ray.soak.samples import ActorSample, Sample
from k2ray.soak.verdict import Compared, Plan, Run

SINCE = 1_795_435_200.0
HOUR = 3600.0
MB = 1_000_000
PLAN = Plan(1, 3600.0, 0.1, 180.0, 10.0, warmup_s=600.0, hard_bytes={"feed": 1000 * MB})


def feed(minute: int, **changes: Any) -> ActorSample:
    values: dict[str, Any] = {
        "name": "feed:binance:0",
        "role": "feed",
        "state": "running",
        "pid": 10,
        "rss_bytes": 200 * MB + minute % 3 * 10_000,
        "data_age_s": 0.1,
        "pong_age_s": 100.0,
        "rotations": {"schedule": minute // 58},
    }
    return ActorSample(**{**values, **changes})


def samples(minutes: int = 60, **changes: Any) -> list[Sample]:
    return [Sample(SINCE + 60 * n, [feed(n, **changes)], pings=round(n * 60 / 180)) for n in range(minutes + 1)]


def evidence(seconds: int = 3600, rows: int = 36_100, **changes: Any) -> Evidence:
    values: dict[str, Any] = {
        "table": "trades",
        "rows": rows,
        "duplicated": 0,
        "missing": 0,
        "seconds": frozenset(range(int(SINCE), int(SINCE) + seconds)),
    }
    return Evidence(**{**values, **changes})


def an_hour(**changes: Any) -> Run:
    values: dict[str, Any] = {
        "since_s": SINCE,
        "until_s": SINCE + HOUR,
        "asked_s": HOUR,
        "plan": PLAN,
        "samples": samples(),
        "evidence": [evidence()],
        "compared": [Compared("trades", 36_100, 36_100, 0, 0, 0)],
    }
    return Run(**{**values, **changes})
