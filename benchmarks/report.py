"""What all benchmarks share: one table on the terminal, one JSON file with machine and commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Return what a number depends on: the machine, the versions, and how busy it was with other work."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "load_1m_before": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    """Return the commit that was measured; `+` marks uncommitted changes."""
    here = Path(__file__).parent
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True, text=True, check=False
    )
    return (head.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def report(
    name: str, rows: list[dict[str, Any]], notes: str = "", *, quick: bool | None = None, of_commit: str | None = None
) -> None:
    """Print the rows as a table and write them to `benchmarks/results/<name>.json`.

    Args:
        name: The benchmark's name, which is also its file's.
        rows: One dictionary a line, all with the same keys.
        notes: How it was measured, what else ran, what an aim was missed by.
        quick: It ran with smaller sizes: marked as such, and never in place of a full run's result. None: if the
            command line says `--quick`, which every benchmark takes.
        of_commit: What was measured, where that is not what is checked out.
    """
    heads = list(rows[0]) if rows else []
    lines = [heads] + [[text_of(row.get(head)) for head in heads] for row in rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(heads))]
    print(f"\n{name}")
    for number, line in enumerate(lines):
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))
    if notes:
        print(f"  {notes}")
    quick = "--quick" in sys.argv if quick is None else quick
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    if quick and file.exists() and not json.loads(file.read_text()).get("quick"):
        print(f"  {file.name} keeps the full run's result")
        return
    document = {
        "name": name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": of_commit or commit(),
        "quick": quick,
        "machine": machine(),
        "notes": notes,
        "rows": rows,
    }
    file.write_text(json.dumps(document, indent=1) + "\n")


def text_of(value: object) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
