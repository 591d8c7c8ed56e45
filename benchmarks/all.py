"""Run every benchmark, one after another: `python -m benchmarks.all [--quick] [NAME ...]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

NOT_BENCHMARKS = {"__init__", "all", "lone_feed", "memory", "render", "report", "system"}
"""`memory` runs nothing: it reads a soak's report."""


def main() -> int:
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*names, []], help="which ones (default: all)")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, to see that each still runs")
    arguments = parser.parse_args()
    failed = []
    for name in arguments.names or names:
        print(f"\n==> {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if arguments.quick else [])]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
