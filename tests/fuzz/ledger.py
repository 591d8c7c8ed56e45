"""The ledger's simulation for as long as wanted: `python -m tests.fuzz.ledger --runs 1000 --seed 0`.

Each run invents a market log of trades and one of quotes, decides it in random batches, and compares with the truth;
then again in other batches with restarts in between, and compares the decisions and the ledgers' bytes. The first
failure ends it with exit status 1 and says how to run that seed again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from k2ray.ledger import encode_ledger
from tests.support.market_log import Run, hidden_restarts, judge, market_log, run


def differences(one: Run, other: Run) -> list[int]:
    """Return the rows on which two runs disagree."""
    return [
        row
        for row, keep in enumerate(one.keep)
        if keep != other.keep[row] or (keep and one.spaces[row] != other.spaces[row])
    ]


def complaint(seed: int, table: str) -> tuple[str, int, int]:
    """Run one seed; return what is wrong ("" if nothing), its rows, and its instruments with hidden restarts."""
    rows, params = market_log(seed, table)
    first = run(rows, params, seed)
    hidden = len(hidden_restarts(rows))
    verdict = judge(rows, first)
    if verdict:
        return str(verdict), len(rows), hidden
    again = run(rows, params, seed + 1, largest=random.Random(seed).choice((3, 40, 5_000)), restart=True)
    different = differences(first, again)
    if different:
        return f"{len(different)} decisions depend on the batches, first {rows[different[0]]}", len(rows), hidden
    if encode_ledger(first.ledger, {}) != encode_ledger(again.ledger, {}):
        return "the ledger's bytes depend on the batches", len(rows), hidden
    return "", len(rows), hidden


def main() -> int:
    """Run the seeds and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--table", choices=("trades", "quotes"), help="only this one")
    arguments = parser.parse_args()
    tables = [arguments.table] if arguments.table else ["trades", "quotes"]
    began, rows, hidden = time.monotonic(), 0, 0
    for done, seed in enumerate(range(arguments.seed, arguments.seed + arguments.runs), start=1):
        for table in tables:
            wrong, count, blind = complaint(seed, table)
            rows, hidden = rows + count, hidden + blind
            if wrong:
                print(f"FAILED seed {seed} {table}: {wrong}")
                print(f"again: python -m tests.fuzz.ledger --runs 1 --seed {seed} --table {table}")
                return 1
        if done % 50 == 0 or done == arguments.runs:
            print(f"{done} of {arguments.runs} seeds, {rows:,} rows, {time.monotonic() - began:.0f} s", flush=True)
    print(f"lost 0, doubled 0, mislabelled 0; labels not judged for {hidden} instruments with a hidden restart")
    return 0


if __name__ == "__main__":
    sys.exit(main())
