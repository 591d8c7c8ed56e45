"""Memory of each actor over an hour, from the report of a soak: `python -m benchmarks.memory --report FILE`.

Nothing is run here. The hour itself is `k2ray soak --hours 1 --rate 5000` (trades, and as many quotes), or any other;
its report says how fast it went. The line through a process's memory leaves out its first ten minutes. What a report
does not tell, the samples below the soak's folder do.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

from benchmarks.report import report
from k2ray.soak.growth import MB
from k2ray.soak.samples import read_samples

WARM_S = 600.0


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a line for each actor; feeds, which hold what the exchange sends, come first."""
    growth = document["growth_mb_per_day"]
    rows = []
    for actor, memory in sorted(
        document["memory_mb"].items(), key=lambda item: (not item[0].startswith("feed:"), item)
    ):
        line = growth.get(actor, {})
        rows.append(
            {
                "actor": actor,
                "start_mb": memory["first"],
                "after_10_min_mb": memory.get("warm"),
                "end_mb": memory["last"],
                "most_mb": memory["most"],
                "growth_mb_per_day": _rounded(line.get("mb_per_day")),
                "at_least": _rounded(line.get("low")),
                "at_most": _rounded(line.get("high")),
                "samples": line.get("samples", 0),
            }
        )
    return rows


def fill_in(document: dict[str, Any], logs: Path) -> None:
    """Add each actor's memory after ten minutes, where it is missing, from the samples that the supervisor wrote."""
    since_s, until_s = (
        datetime.datetime.strptime(document[when], "%Y-%m-%d %H:%M:%S %Z").replace(tzinfo=datetime.UTC).timestamp()
        for when in ("since", "until")
    )
    for sample in read_samples(logs, since_s + WARM_S, until_s):
        for actor in sample.actors:
            memory = document["memory_mb"].get(actor.name)
            if memory is not None and memory.get("warm") is None and actor.rss_bytes is not None:
                memory["warm"] = round(actor.rss_bytes / MB, 1)


def notes_of(document: dict[str, Any]) -> str:
    """Say what was run, and what became of it."""
    ran_s = document["ran_s"]
    rates = ", ".join(f"{table['rows'] / ran_s:,.0f} {table['table']}/s" for table in document["tables"]) or "no rows"
    return (
        f"A {document['title']}, from {document['since']} for {ran_s / 60:.0f} minutes, {rates} stored, verdict "
        f"{document['verdict']}. Growth: a straight line through the samples after the first ten minutes, with its "
        "95 % interval; none where they are too few or hang together too much."
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, required=True, help="a soak's report.json")
    parser.add_argument("--commit", help="that ran (default: what is checked out)")
    arguments = parser.parse_args()
    document = json.loads(arguments.report.read_text(encoding="utf-8"))
    fill_in(document, arguments.report.parent / "data" / "logs")
    report("memory", rows_of(document), notes_of(document), of_commit=arguments.commit)


if __name__ == "__main__":
    main()
