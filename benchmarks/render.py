"""Write the newest results into the README, between its markers: `python -m benchmarks.render`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, text_of

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- results: written by `python -m benchmarks.render` -->", "<!-- end of results -->"
ORDER = (
    "end_to_end",
    "end_to_end_picows",
    "decode",
    "feed",
    "drain",
    "stage_commit",
    "commit_history",
    "months",
    "compaction",
    "query",
    "heal",
    "rotation",
    "memory",
    "backfill",
    "avro_drain",
    "avro_stages",
    "avro_end_to_end",
    "avro_codec",
)


def main() -> int:
    README.write_text(with_results(README.read_text()))
    return 0


def with_results(readme: str) -> str:
    """Return the README's text with the section of results made anew from `benchmarks/results/`."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    found = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    names = [name for name in ORDER if name in found] + sorted(set(found) - set(ORDER))
    return f"{before}{START}\n\n" + "\n".join(_section(found[name]) for name in names) + f"{END}{after}"


def _section(result: dict[str, Any]) -> str:
    rows = result["rows"]
    heads = list(rows[0]) if rows else []
    machine = result["machine"]
    lines = [
        f"**{result['name']}** ({'quick run, ' if result.get('quick') else ''}{result['at'][:10]}, "
        f"commit {result['commit']}, {machine['cores']} cores "
        f"{machine['cpu']}, load before {machine['load_1m_before']}): {result['notes']}",
        "",
        "| " + " | ".join(head.replace("_", " ") for head in heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(text_of(row.get(head)) for head in heads) + " |" for row in rows),
        "",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
