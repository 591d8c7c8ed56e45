"""A run's report: JSON for machines, one self-contained HTML page for people. Pure, but for writing the files."""

from __future__ import annotations

import datetime
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from k2ray.soak.growth import MB
from k2ray.soak.plots import plot
from k2ray.soak.samples import ActorSample
from k2ray.soak.verdict import Run, Verdict, growth_text, lives_of, reconnects_of, rotations_of, span

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem; color: #1e293b; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .6rem .3rem 0;
border-bottom: 1px solid #e2e8f0; vertical-align: top; } small { color: #64748b; font-weight: normal; }
.passed { color: #047857; } .failed { color: #b91c1c; } .not-proven { color: #b45309; }
figure { margin: 1.5rem 0; } h2 { font-size: 1rem; margin: 0 0 .3rem; } svg { width: 100%; height: auto; }
svg text { font-size: 11px; fill: #64748b; } polyline { fill: none; stroke-width: 1.5; } .grid { stroke: #e2e8f0; }
.mark { stroke: #94a3b8; stroke-dasharray: 3 3; } figcaption { font-size: 12px; } .none { color: #94a3b8; }
"""


def as_json(title: str, run: Run, verdict: Verdict) -> dict[str, Any]:
    """Return the report as plain values; numbers that are not known are null."""
    return {
        "title": title,
        "verdict": verdict.outcome,
        "since": _when(run.since_s),
        "until": _when(run.until_s),
        "asked_s": round(run.asked_s, 1),
        "ran_s": round(run.ran_s, 1),
        "aborted": run.aborted,
        "checks": [asdict(check) for check in verdict.checks],
        "growth_mb_per_day": {name: _finite(asdict(growth)) for name, growth in verdict.growth.items()},
        "rotations": rotations_of(run.samples),
        "reconnects": reconnects_of(run.samples),
        "restarts": {name: restarts for name, (_, restarts) in lives_of(run.samples).items()},
        "compared": [asdict(one) for one in run.compared],
        "tables": [
            {
                "table": one.table,
                "rows": one.rows,
                "duplicated": one.duplicated,
                "missing": one.missing,
                "holes": [asdict(hole) for hole in one.holes],
            }
            for one in run.evidence
        ],
        "samples": len(run.samples),
        "memory_mb": _memory_summary(run),
    }


def as_html(title: str, run: Run, verdict: Verdict) -> str:
    """Return the report as a page that needs nothing else."""
    kind = verdict.outcome.replace(" ", "-")
    rows = "".join(
        f"<tr><td>{escape(check.name)}</td><td>{escape(check.wanted)}</td><td>{escape(check.found)}</td>"
        f"<td class='{check.outcome.replace(' ', '-')}'>{check.outcome}</td></tr>"
        for check in verdict.checks
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}: {verdict.outcome}</title>"
        f"<style>{_STYLE}</style><h1>{escape(title)}: <span class='{kind}'>{verdict.outcome}</span></h1>"
        f"<p>{_when(run.since_s)} to {_when(run.until_s)}: ran <b>{span(run.ran_s)}</b> of {span(run.asked_s)} asked"
        f"{'; ended early: ' + escape(run.aborted) if run.aborted else ''}.</p>"
        f"<table><tr><th>what</th><th>wanted</th><th>found</th><th>outcome</th></tr>{rows}</table>"
        f"{_missing_ids(run)}{_actors(run, verdict)}{''.join(_plots(run))}"
        "<p><small>Dashed lines are rotations; the reason shows where the pointer rests on one.</small></p></html>"
    )


def write_report(folder: Path, title: str, run: Run, verdict: Verdict) -> tuple[Path, Path]:
    """Write both forms into a folder and return where: (JSON, HTML)."""
    folder.mkdir(parents=True, exist_ok=True)
    as_data, page = folder / "report.json", folder / "report.html"
    as_data.write_text(json.dumps(as_json(title, run, verdict), indent=2) + "\n", encoding="utf-8")
    page.write_text(as_html(title, run, verdict), encoding="utf-8")
    return as_data, page


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    heads = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "".join(f"<tr>{line}</tr>" for line in cells)
    return f"<figure><h2>{escape(title)}</h2><table><tr>{heads}</tr>{lines}</table></figure>"


def _missing_ids(run: Run) -> str:
    rows = [
        (hole.exchange, hole.symbol, hole.space, f"{hole.first_id} to {hole.last_id}", one.table)
        for one in run.evidence
        for hole in one.holes
    ]
    return _table("Missing between stored ids", ("exchange", "symbol", "numbering", "ids", "table"), rows)


def _actors(run: Run, verdict: Verdict) -> str:
    memory = _memory_summary(run)
    rows = []
    for name, (processes, restarts) in sorted(lives_of(run.samples).items()):
        sizes = [memory.get(name, {}).get(moment) for moment in ("first", "warm", "last", "most")]
        shown = ["-" if size is None else f"{size:,.0f}" for size in sizes]
        growth = verdict.growth.get(name)
        rows.append((name, str(processes), str(restarts), *shown, "-" if growth is None else growth_text(growth)))
    columns = ("actor", "processes", "restarts", "MB first", "MB warm", "MB last", "MB most", "growth (95 % interval)")
    return _table("Actors", columns, rows)


def _plots(run: Run) -> list[str]:
    marks = _rotation_marks(run)
    return [
        plot("Memory of each actor", "MB resident", _of_actors(run, lambda a: _scaled(a.rss_bytes, MB)), marks=marks),
        plot("Rows stored, by event time", "per second", {one.table: one.rates for one in run.evidence}, marks=marks),
        plot("Lag of the writers", "rows in Kafka not yet read", _of_actors(run, lambda a: a.lag_trades)),
        plot("Freshness", "seconds from event to commit, p99", _of_actors(run, lambda a: a.freshness_s), marks=marks),
        plot("Rotations", "completed since the process began", _of_actors(run, _rotation_count)),
        plot(
            "Reconnects",
            "since the process began",
            _of_actors(run, lambda a: a.reconnects if a.role == "feed" else None),
        ),
        plot(
            "Open gaps",
            "missing ids",
            {"ids": [(one.at_s, float(one.gap_ids)) for one in run.samples]},
            marks=marks,
        ),
        plot("Age of the last frame", "seconds", _of_actors(run, lambda a: a.data_age_s if a.role == "feed" else None)),
    ]


def _of_actors(run: Run, value: Callable[[ActorSample], float | None]) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for sample in run.samples:
        for actor in sample.actors:
            number = value(actor)
            if number is not None:
                found[actor.name].append((sample.at_s, float(number)))
    return found


def _rotation_count(actor: ActorSample) -> float | None:
    return float(sum(actor.rotations.values())) if actor.role == "feed" else None


def _rotation_marks(run: Run) -> list[tuple[float, str]]:
    """Return when rotations were first seen, with their reason."""
    marks: list[tuple[float, str]] = []
    seen: dict[tuple[str, str, int | None], int] = {}
    for number, sample in enumerate(run.samples):
        for actor in sample.actors:
            for reason, count in actor.rotations.items():
                key = (actor.name, reason, actor.pid)
                if number and count > seen.get(key, 0):
                    marks.append((sample.at_s, f"{actor.name}: {reason}"))
                seen[key] = count
    return marks


def _memory_summary(run: Run) -> dict[str, dict[str, float | None]]:
    memory = _of_actors(run, lambda actor: _scaled(actor.rss_bytes, MB))
    return {
        name: {
            "first": round(points[0][1], 1),
            "warm": next((round(size, 1) for at_s, size in points if at_s - run.since_s >= run.plan.warmup_s), None),
            "last": round(points[-1][1], 1),
            "most": round(max(value for _, value in points), 1),
        }
        for name, points in memory.items()
    }


def _scaled(value: int | None, by: float) -> float | None:
    return None if value is None else value / by


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def _when(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
