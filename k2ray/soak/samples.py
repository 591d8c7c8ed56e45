"""What a running system says of itself once a minute, as a line of JSON, in a file a day.

The supervisor writes them below `<data_dir>/logs`, `k2ray validate` reads them back. A line holds plain numbers only;
what cannot be read (a line cut off by a crash) is left out, and missing among the samples that a verdict asks for.

Next in the flow: `verdict.py`.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from k2ray.logs import SAMPLES, remove_old_logs

INTERVAL_S = 60.0
DAYS_KEPT = 35
"""Enough for a validation of a month; a day takes about 2 MB."""


class ActorSample(msgspec.Struct, frozen=True, omit_defaults=True):
    """One actor at one moment; counts are since its process began.

    Attributes:
        name: Without generation. `pid` tells processes apart, `generation` and `restarts` say how many there were.
        restarts_by: Reason -> unplanned restarts; only the supervisor counts its own without one.
        rate: Rows per second, as the actor counts them.
        rotations: Reason -> completed rotations; `reconnects`: connections that ended before another one delivered.
        pong_age_s: Since the exchange last answered a ping of ours.
    """

    name: str
    role: str
    state: str
    pid: int | None = None
    generation: int = 0
    restarts: int = 0
    restarts_by: dict[str, int] = {}
    rss_bytes: int | None = None
    vms_bytes: int | None = None
    store_bytes: int | None = None
    rate: float | None = None
    lag_trades: int | None = None
    lag_s: float | None = None
    data_age_s: float | None = None
    freshness_s: float | None = None
    pong_age_s: float | None = None
    reconnects: int = 0
    rotations: dict[str, int] = {}


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """The system at one moment.

    Attributes:
        at_s: Unix time.
        gaps: Open gaps, sealed ones left out; `gap_ids`: ids in them.
        pings: Pings of ours that the exchange counted so far; only a simulated one says so.
    """

    at_s: float
    actors: list[ActorSample]
    gaps: int = 0
    gap_ids: int = 0
    pings: int | None = None


def sample_of(status: Mapping[str, Any], at_s: float, pings: int | None = None) -> Sample:
    """Return what a status (`actors/report.py`) says at a moment; replicas of the API are actors of the role `api`."""
    gaps = [gap for gap in status.get("gaps", ()) if not gap.get("sealed")]
    ids = sum(gap["last_id"] - gap["first_id"] + 1 for gap in gaps)
    actors = [_actor(actor) for actor in status.get("actors", ())]
    actors += [
        ActorSample(one["name"], "api", "running", pid=one.get("pid"), rss_bytes=one.get("rss_bytes"))
        for one in status.get("replicas", ())
    ]
    return Sample(at_s, actors, len(gaps), ids, pings)


def _actor(actor: Mapping[str, Any]) -> ActorSample:
    detail: Mapping[str, Any] = actor.get("detail") or {}
    memory: Mapping[str, Any] = actor.get("memory") or {}
    return ActorSample(
        name=str(actor["name"]).split("#")[0],
        role=str(actor["role"]),
        state=str(actor["state"]),
        pid=actor.get("pid"),
        generation=actor.get("generation") or 0,
        restarts=actor.get("restarts") or 0,
        restarts_by={reason: count for reason, count in (actor.get("restarts_by") or {}).items() if count},
        rss_bytes=actor.get("rss_bytes"),
        vms_bytes=memory.get("vms_bytes"),
        store_bytes=memory.get("store_bytes"),
        rate=_rounded(actor.get("rate")),
        lag_trades=actor.get("lag_trades"),
        lag_s=_rounded(actor.get("lag_s")),
        data_age_s=_rounded(actor.get("data_age_s")),
        freshness_s=_rounded(detail.get("freshness_p99_s")),
        pong_age_s=_rounded(detail.get("pong_age_s")),
        reconnects=detail.get("reconnects") or 0,
        rotations={reason: count for reason, count in (detail.get("rotations") or {}).items() if count},
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


class SampleLog:
    """Appends samples to the day's file, when it is time, and once a day removes samples and logs that are too old.

    Args:
        folder: `DataDir.logs`.
        interval_s: Seconds between two samples.
    """

    def __init__(self, folder: Path, interval_s: float = INTERVAL_S) -> None:
        self._folder = folder
        self._interval_s = interval_s
        self._due_s = float("-inf")
        self._day = ""

    def note(self, status: Mapping[str, Any], at_s: float, monotonic_s: float) -> bool:
        """Write a sample down if it is time; returns whether it did.

        Args:
            status: What `status` says.
            at_s: Unix time.
            monotonic_s: Decides when it is time.

        Raises:
            OSError: The disk is full or gone; the next one is tried an interval later.
        """
        if monotonic_s < self._due_s:
            return False
        self._due_s = monotonic_s + self._interval_s
        day = _day(at_s)
        if day != self._day:
            self._day = day
            self._remove_old(at_s)
        with (self._folder / f"{SAMPLES}{day}.jsonl").open("ab") as out:
            out.write(msgspec.json.encode(sample_of(status, at_s)) + b"\n")
        return True

    def _remove_old(self, at_s: float) -> None:
        oldest = _day(at_s - DAYS_KEPT * 86_400)
        for file in self._folder.glob(f"{SAMPLES}*.jsonl"):
            if file.stem.removeprefix(SAMPLES) < oldest:
                file.unlink(missing_ok=True)
        remove_old_logs(self._folder, at_s)


def _day(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y%m%d")


def read_samples(folder: Path, since_s: float, until_s: float) -> list[Sample]:
    """Return the samples of a period, oldest first."""
    days = (_day(since_s), _day(until_s))
    found: list[Sample] = []
    for file in sorted(folder.glob(f"{SAMPLES}*.jsonl")):
        if days[0] <= file.stem.removeprefix(SAMPLES) <= days[1]:
            found += read_lines(file.read_bytes().splitlines())
    return sorted((one for one in found if since_s <= one.at_s <= until_s), key=lambda one: one.at_s)


def read_lines(lines: Sequence[bytes]) -> list[Sample]:
    """Return the samples of lines, without those that cannot be read."""
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Sample))
        except (msgspec.DecodeError, msgspec.ValidationError):
            continue
    return found
