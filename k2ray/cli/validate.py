"""`k2ray validate`: the soak's report about a running system, over any period of its life.

Nothing is started or changed: the samples are those that the supervisor wrote down, the proof is in the tables.
"""

from __future__ import annotations

import datetime
import re
import time
from pathlib import Path

from k2ray.cli.soak import show
from k2ray.errors import BadInput
from k2ray.layout import DataDir
from k2ray.settings import load_settings
from k2ray.soak.gather import examine_tables, plan_of
from k2ray.soak.samples import read_samples
from k2ray.soak.verdict import Run

SETTLED_S = 60.0
"""Rows of the last minute may still be on their way into the tables."""

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}


def validate(config: Path | None, since: str, until: str | None, out: Path | None) -> int:
    """Judge a period, write the report, and return the exit status: 0 passed, 1 failed, 2 not proven.

    Args:
        config: Settings file.
        since: A time, or how long ago.
        until: The same; None: now, less what is still on its way.
        out: The report's folder; None: below the data folder.

    Raises:
        BadInput: The period makes no sense.
        TryAgain: The catalog is away.
    """
    settings = load_settings(config)
    layout = DataDir(settings.data_dir)
    now_s = time.time()
    since_s = moment(since, now_s)
    until_s = min(moment(until, now_s) if until is not None else now_s, now_s - SETTLED_S)
    if until_s <= since_s:
        raise BadInput(f"the period ends before it begins, or within the last {SETTLED_S:g} s")
    samples = read_samples(layout.logs, since_s, until_s)
    run = Run(
        since_s=since_s,
        until_s=until_s,
        asked_s=until_s - since_s,
        plan=plan_of(settings, samples),
        samples=samples,
        evidence=examine_tables(settings, layout, since_s, until_s),
    )
    stamp = datetime.datetime.fromtimestamp(since_s, datetime.UTC).strftime("%Y%m%dT%H%M%S")
    return show("validation", run, out or layout.root / "reports" / f"validation-{stamp}")


def moment(text: str, now_s: float) -> float:
    """Return the unix time that a text means: ISO 8601 (UTC unless it says otherwise), or `7d`, `90min` ago.

    Raises:
        BadInput: It means nothing.
    """
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)", text.strip())
    if ago is not None:
        return now_s - float(ago[1]) * _UNITS[ago[2]]
    try:
        at = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise BadInput(f"{text!r} is neither a time (2026-01-31T12:00) nor how long ago (7d, 90min)") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)).timestamp()
