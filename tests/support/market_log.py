"""A random market log with its truth: what exchanges, feeds, spools, backfill and files do to one partition.

`market_log(seed, table)` invents instruments whose ids restart, lets two feeds see them (each with outages, a spool
that is replayed late, reordered and repeated rows), adds backfill, a file of the past and poisoned rows. `judge`
compares what a ledger decided with the truth.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from k2ray.ledger import Ledger, LedgerEvent, LedgerParams, LedgerPosition, decode_ledger, encode_ledger
from k2ray.model import REPEATED, TIMESTAMP

SECOND = 1_000_000
PARTITION = ("market.crypto.trades.sim", 0)
POISON = -1


@dataclass(frozen=True)
class Row:
    """A row of the log. `epoch` and `event` are the truth: which numbering, and which row of it."""

    symbol: str
    base: str
    epoch: int
    row_id: int
    start: int
    time_us: int

    @property
    def event(self) -> tuple[str, str, int, int]:
        return (self.symbol, self.base, self.epoch, self.row_id)


@dataclass
class Verdict:
    """What the ledger got wrong."""

    lost: list[Row] = field(default_factory=list)
    doubled: list[Row] = field(default_factory=list)
    mislabelled: list[tuple[Row, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.mislabelled)

    def __str__(self) -> str:
        first = (self.lost + self.doubled)[:3] or self.mislabelled[:3]
        return f"lost {len(self.lost)} doubled {len(self.doubled)} mislabelled {len(self.mislabelled)}: {first}"


def batch_of(rows: Sequence[Row], exchange: str = "sim") -> pa.RecordBatch:
    """Return rows as a batch with the columns that the ledger looks at."""

    def repeated(values: list[str]) -> pa.DictionaryArray:
        return pa.array(values, pa.string()).dictionary_encode().cast(REPEATED)

    return pa.record_batch(
        {
            "exchange": repeated([exchange] * len(rows)),
            "symbol": repeated([row.symbol for row in rows]),
            "sequence_space": repeated([row.base for row in rows]),
            "source_sequence": pa.array([row.row_id for row in rows], pa.int64()),
            "sequence_from": pa.array([row.start for row in rows], pa.int64()),
            "timestamp": pa.array([row.time_us for row in rows], TIMESTAMP),
        }
    )


def cut(rows: Sequence[Row], rng: random.Random, largest: int) -> list[Sequence[Row]]:
    """Cut the log into batches of random sizes."""
    parts, at = [], 0
    while at < len(rows):
        size = rng.choice((1, rng.randint(1, 10), rng.randint(1, largest)))
        parts.append(rows[at : at + size])
        at += size
    return parts


@dataclass
class Run:
    """A ledger's decisions on a whole log."""

    keep: list[bool]
    spaces: list[str]
    events: list[LedgerEvent]
    ledger: Ledger


def run(rows: Sequence[Row], params: LedgerParams, seed: int, largest: int = 400, restart: bool = False) -> Run:
    """Decide a log in random batches; with `restart`, the ledger now and then goes through its file or a copy."""
    rng = random.Random(seed)
    result = Run([], [], [], Ledger(params))
    for part in cut(rows, rng, largest):
        if restart and rng.random() < 0.1:
            ledger, _ = decode_ledger(encode_ledger(result.ledger, {PARTITION: LedgerPosition("id", len(result.keep))}))
            result.ledger = ledger
        elif restart and rng.random() < 0.1:
            spare = result.ledger.copy()
            spare.decide(PARTITION, batch_of(rows[-50:]))  # what a rolled back attempt did leaves no trace
        batch = batch_of(part)
        if rng.random() < 0.2 and len(part) > 1:
            middle = rng.randrange(1, len(part))
            batch = pa.Table.from_batches([batch_of(part[:middle]), batch_of(part[middle:])])
        decision = result.ledger.decide(PARTITION, batch)
        result.keep.extend(decision.keep.tolist())
        result.spaces.extend([row.base for row in part] if decision.space is None else decision.space.to_pylist())
        result.events.extend(decision.events)
    return result


def judge(rows: Sequence[Row], result: Run, unjudged: Collection[tuple[str, str]] = ()) -> Verdict:
    """Compare decisions with the truth: every event kept once, one label a numbering, one numbering a label.

    Args:
        rows: The log.
        result: What was decided.
        unjudged: Instruments whose labels say nothing, besides those with a hidden restart.
    """
    verdict = Verdict()
    kept: Counter[tuple[str, str, int, int]] = Counter()
    labels: dict[tuple[str, str, int], Counter[str]] = defaultdict(Counter)
    for row, keep, space in zip(rows, result.keep, result.spaces, strict=True):
        if keep and row.epoch != POISON:
            kept[row.event] += 1
            labels[(row.symbol, row.base, row.epoch)][space] += 1
            if kept[row.event] > 1:
                verdict.doubled.append(row)
    seen: dict[tuple[str, str, int, int], Row] = {}
    for row in rows:
        seen.setdefault(row.event, row)
    hidden = hidden_restarts(rows) | set(unjudged)
    verdict.lost = [row for event, row in seen.items() if row.epoch != POISON and not kept[event]]
    label_of = {key: counts.most_common(1)[0][0] for key, counts in labels.items()}
    owner: dict[tuple[str, str, str], int] = {}
    for (symbol, base, epoch), label in sorted(label_of.items()):
        owner.setdefault((symbol, base, label), epoch)
    for row, keep, space in zip(rows, result.keep, result.spaces, strict=True):
        if keep and row.epoch != POISON and (row.symbol, row.base) not in hidden:
            key = (row.symbol, row.base, row.epoch)
            if label_of[key] != space or owner[(row.symbol, row.base, space)] != row.epoch:
                verdict.mislabelled.append((row, space))
    return verdict


def hidden_restarts(rows: Sequence[Row]) -> set[tuple[str, str]]:
    """Return instruments with a restart that nobody could tell from the log: labels are not judged there.

    A numbering's first row in the log is above all ids of the one before (it looks like a gap), or whole numberings
    arrive in another order than they happened in.
    """
    highest: dict[tuple[str, str], tuple[int, int]] = {}
    known: set[tuple[str, str, int]] = set()
    hidden = set()
    for row in rows:
        if row.epoch == POISON:
            continue
        key = (row.symbol, row.base)
        epoch, top = highest.get(key, (row.epoch, row.row_id))
        if row.epoch > epoch:
            if row.row_id > top or row.epoch > epoch + 1:
                hidden.add(key)
            highest[key] = (row.epoch, row.row_id)
        elif row.epoch < epoch and (*key, row.epoch) not in known:
            hidden.add(key)
        elif row.epoch == epoch:
            highest[key] = (epoch, max(top, row.row_id))
        known.add((*key, row.epoch))
    return hidden


def market_log(seed: int, table: str = "trades", poison: bool = True) -> tuple[list[Row], LedgerParams]:
    """Return a random log of a few instruments and the parameters for it."""
    rng = random.Random(seed)
    defaults = LedgerParams.for_table(table)
    params = replace(defaults, openings_per_hour=1_000)
    arrivals: list[tuple[float, int, Row]] = []
    for symbol in ("BTCUSDT", "ETHUSDT", "THIN")[: rng.randint(1, 3)]:
        arrivals += _instrument(rng, symbol, rng.choice(("", "", "agg")), table, params, poison)
    arrivals.sort(key=lambda item: (item[0], item[1]))
    return [row for _, _, row in arrivals], params


def _instrument(
    rng: random.Random, symbol: str, base: str, table: str, params: LedgerParams, poison: bool
) -> list[tuple[float, int, Row]]:
    truth = _truth(rng, symbol, base, table, params.tolerance_us)
    begin, end = truth[0].time_us, truth[-1].time_us
    recording = begin + round(rng.choice((0, 0, rng.random() * 0.2)) * (end - begin))
    live = [row for row in truth if row.time_us >= recording]
    arrivals: list[tuple[float, int, Row]] = []
    quotes = table == "quotes"
    for feed in range(rng.choice((1, 2, 2))):
        arrivals += _feed(rng, live, feed, quotes, params.tolerance_us)
    if not quotes:
        arrivals += _backfill(rng, live, arrivals)
        if rng.random() < 0.6:
            arrivals += _file(rng, truth, begin, end)
    if poison:
        arrivals += _poisons(rng, live)
    return arrivals


def _truth(rng: random.Random, symbol: str, base: str, table: str, tolerance_us: int) -> list[Row]:
    truth: list[Row] = []
    clock = 1_700_000_000 * SECOND
    jitter = tolerance_us // 5
    first = rng.choice((1, 1, rng.randint(1, 10_000), rng.randint(1, 10**9)))
    for epoch in range(rng.choice((1, 1, 2, 3, 4))):
        count = rng.randint(50, 700)
        pause = max(30 * SECOND, 30 * tolerance_us) * rng.uniform(1, 300) / count
        # A restart is to be seen as one: ids from 1 on, or at least from below where the last numbering ended.
        row_id = first if epoch == 0 else rng.choice((1, 1, rng.randint(1, 40)))
        for _ in range(count):
            clock += round(rng.expovariate(1) * pause) + 1
            shift = rng.randint(-jitter, jitter)
            truth.append(Row(symbol, base, epoch, row_id, row_id - 1, clock + shift))
            row_id += 1 if table == "trades" else rng.choice((1, 1, 2, 5, 30))
        clock += round(rng.choice((rng.uniform(0.5, 2), rng.uniform(2, 60))) * tolerance_us)
    return truth


def _feed(
    rng: random.Random, live: list[Row], feed: int, quotes: bool, tolerance_us: int
) -> list[tuple[float, int, Row]]:
    """A connection with outages, stalls and a spool; strictly first in, first out."""
    arrivals: list[tuple[float, int, Row]] = []
    latency = rng.uniform(0, 3) * SECOND
    connected, previous = True, None
    free_at = 0.0
    spooling_until = 0.0
    span = live[-1].time_us - live[0].time_us + 1
    epoch = live[0].epoch
    down_at_restart = rng.random() < 0.3
    for row in live:
        if rng.random() < (0.02 if connected else 0.1) or (row.epoch != epoch and down_at_restart):
            connected, previous = not connected, None
            if row.epoch != epoch:
                connected = False
        epoch = row.epoch
        if not connected:
            continue
        time_us = row.time_us + (rng.randint(0, tolerance_us // 5) if quotes else 0)
        start = row.row_id - 1 if not quotes or previous is None else previous
        previous = row.row_id
        seen = Row(row.symbol, row.base, row.epoch, row.row_id, start, time_us)
        if row.time_us > spooling_until and rng.random() < 0.004:
            # A spool holds rows back for less than the day after which holes between quotes are joined.
            spooling_until = row.time_us + rng.random() * min(0.5 * span, 12 * 3600 * SECOND)
        arrival = max(free_at, row.time_us + latency, spooling_until + latency)
        free_at = arrival
        arrivals.append((arrival, feed, seen))
        if not quotes and rng.random() < 0.02:
            arrivals.append((arrival + rng.uniform(0, 5) * SECOND, feed, seen))  # repeated, or late
        if not quotes and rng.random() < 0.02 and len(arrivals) > 1:
            arrivals[-1], arrivals[-2] = (
                (arrivals[-1][0], feed, arrivals[-2][2]),
                (arrivals[-2][0], feed, arrivals[-1][2]),
            )
    return arrivals


def _backfill(
    rng: random.Random, live: list[Row], arrivals: list[tuple[float, int, Row]]
) -> list[tuple[float, int, Row]]:
    """What no feed saw is fetched, most of it, some time later; overlapping a little with what was seen."""
    seen = {row.event for _, _, row in arrivals}
    end = max((at for at, _, _ in arrivals), default=0.0)
    fetched: list[tuple[float, int, Row]] = []
    at, index = 0.0, 0
    while index < len(live):
        if live[index].event in seen:
            index += 1
            continue
        stop = index
        while stop < len(live) and live[stop].event not in seen and live[stop].epoch == live[index].epoch:
            stop += 1
        known_after = any(row.epoch == live[index].epoch for row in live[stop : stop + 1])
        if known_after and rng.random() < 0.8:
            at = (
                live[stop].time_us
                + rng.uniform(5, 300) * SECOND
                + rng.choice((0.0, rng.random() * (end - live[0].time_us)))
            )
            margin = rng.choice((0, 0, 3))
            epoch = live[index].epoch
            piece = [row for row in live[max(0, index - margin) : stop + margin] if row.epoch == epoch]
            fetched += [(at, 5, row) for row in piece]
        index = stop
    return fetched


def _file(rng: random.Random, truth: list[Row], begin: int, end: int) -> list[tuple[float, int, Row]]:
    """A dump of everything in a window of the past, loaded while live rows arrive between its batches."""
    low, high = sorted((rng.uniform(begin, end), rng.uniform(begin, end)))
    high = min(high, low + 0.5 * (end - begin))
    at = rng.uniform(high, max(high, end)) + 30 * SECOND
    rows = sorted((row for row in truth if low <= row.time_us < high), key=lambda row: (row.epoch, row.row_id))
    return [(at + place * rng.choice((0, 10_000)), 6, row) for place, row in enumerate(rows)]


def _poisons(rng: random.Random, live: list[Row]) -> list[tuple[float, int, Row]]:
    poisons = []
    for _ in range(rng.choice((0, 0, 1, 2))):
        row = rng.choice(live)
        row_id = row.row_id + rng.randint(10**15, 10**17)
        start = rng.choice((row_id - 1, row.row_id))
        poisons.append((row.time_us + 1.0, 7, Row(row.symbol, row.base, POISON, row_id, start, row.time_us)))
    return poisons
