"""The ledger's simulation for as long as wanted: `python -m tests.fuzz.ledger --runs 1000 --seed 0`.

Each run invents a market log of trades and one of quotes, decides it in random batches, and compares with the truth;
then again in other batches with restarts in between, and compares the decisions and the ledgers' bytes. Then the same
logs once more while the exchange's clock steps to and fro: it may open no numbering. The first failure ends it with
exit status 1 and says how to run that seed again.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from dataclasses import dataclass

from k2ray.ledger import encode_ledger
from tests.support.market_clock import hidden_steps, stepped_log
from tests.support.market_log import Run, hidden_restarts, judge, market_log, run


def differences(one: Run, other: Run) -> list[int]:
    """Return the rows on which two runs disagree."""
    return [
        row
        for row, keep in enumerate(one.keep)
        if keep != other.keep[row] or (keep and one.spaces[row] != other.spaces[row])
    ]


@dataclass
class Tally:
    """What was run.

    Attributes:
        rows: Rows decided, each log once.
        restarts: Instruments with a restart that nobody could tell: their labels were not judged.
        steps: How often an exchange's clock went back.
        hidden_steps: Instruments with a step that nobody could tell from a restart: their labels were not judged.
    """

    rows: int = 0
    restarts: int = 0
    steps: int = 0
    hidden_steps: int = 0


def complaint(seed: int, table: str, stepping: bool, tally: Tally) -> str:
    """Run one seed; return what is wrong ("" if nothing)."""
    hidden: set[tuple[str, str]] = set()
    if stepping:
        rows, params, back = stepped_log(seed, table)
        hidden = hidden_steps(rows, params)
        tally.steps += back
        tally.hidden_steps += len(hidden)
    else:
        rows, params = market_log(seed, table)
        tally.restarts += len(hidden_restarts(rows))
    first = run(rows, params, seed)
    tally.rows += len(rows)
    verdict = judge(rows, first, hidden)
    if verdict:
        return str(verdict)
    again = run(rows, params, seed + 1, largest=random.Random(seed).choice((3, 40, 5_000)), restart=True)
    different = differences(first, again)
    if different:
        return f"{len(different)} decisions depend on the batches, first {rows[different[0]]}"
    if encode_ledger(first.ledger, {}) != encode_ledger(again.ledger, {}):
        return "the ledger's bytes depend on the batches"
    return ""


def main() -> int:
    """Run the seeds and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--table", choices=("trades", "quotes"), help="only this one")
    arguments = parser.parse_args()
    tables = [arguments.table] if arguments.table else ["trades", "quotes"]
    began, tally = time.monotonic(), Tally()
    for done, seed in enumerate(range(arguments.seed, arguments.seed + arguments.runs), start=1):
        for table, stepping in itertools.product(tables, (False, True)):
            wrong = complaint(seed, table, stepping, tally)
            if wrong:
                print(f"FAILED seed {seed} {table}{', stepping clock' if stepping else ''}: {wrong}")
                print(f"again: python -m tests.fuzz.ledger --runs 1 --seed {seed} --table {table}")
                return 1
        if done % 50 == 0 or done == arguments.runs:
            print(
                f"{done} of {arguments.runs} seeds, {tally.rows:,} rows, {time.monotonic() - began:.0f} s", flush=True
            )
    print(
        f"lost 0, doubled 0, mislabelled 0 with {tally.steps} steps back of the clock; labels not judged for "
        f"{tally.restarts} instruments with a hidden restart, {tally.hidden_steps} with a hidden step"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
