"""Any interleaving of crash, duplicate, late rows and a rival writer leaves the table equal to the truth, by ids."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k2ray.lake.writer import TableWriter
from k2ray.layout import DataDir
from tests.support.lake import (
    TRADES_TOPIC,
    Killed,
    MemoryLetters,
    MemoryLog,
    MemoryReader,
    kill_at,
    lake_settings,
    open_table,
    trades,
)

SYMBOLS = {"BTCUSDT": 0, "ETHUSDT": 1, "BNBUSDT": 0}
POINTS = (
    "before_genesis",
    "genesis",
    "before_stage",
    "mid_parquet",
    "staged",
    "head_read",
    "inside_commit",
    "after_commit",
)

actions = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(sorted(SYMBOLS)), st.integers(1, 40)),
    st.tuples(st.just("again"), st.sampled_from(sorted(SYMBOLS)), st.integers(1, 40)),
    st.tuples(st.just("hold back"), st.sampled_from(sorted(SYMBOLS)), st.integers(1, 20)),
    st.tuples(st.just("let go"), st.just(""), st.just(0)),
    st.tuples(st.just("step"), st.sampled_from(["first", "second"]), st.integers(1, 3)),
    st.tuples(st.just("commit"), st.sampled_from(["first", "second"]), st.just(0)),
    st.tuples(st.just("crash"), st.sampled_from(["first", "second"]), st.sampled_from(POINTS)),
)


class Story:
    """A log, what was really traded, and two writers of one table that do not know of each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = MemoryLog({TRADES_TOPIC: 2, TRADES_TOPIC.replace("trades", "quotes"): 2})
        self.next = dict.fromkeys(SYMBOLS, 1)
        self.held: list[tuple[str, range]] = []
        self.published: dict[str, list[range]] = {symbol: [] for symbol in SYMBOLS}
        self.writers: dict[str, TableWriter] = {}

    def run(self, action: str, name: str, value: Any) -> None:
        if action in {"publish", "hold back"}:
            ids = range(self.next[name], self.next[name] + value)
            self.next[name] = ids.stop
            if action == "publish":
                self.publish(name, ids)
            else:
                self.held.append((name, ids))
        elif action == "again":
            for ids in self.published[name][-2:]:
                self.publish(name, range(max(ids.start, ids.stop - value), ids.stop))
        elif action == "let go":
            for symbol, ids in self.held:
                self.publish(symbol, ids)
            self.held.clear()
        elif action == "step":
            for _ in range(value):
                self.writer(name).step(0)
        elif action == "commit":
            self.writer(name).drain()
        else:
            self.crash(name, value)

    def publish(self, symbol: str, ids: range) -> None:
        self.log.publish((TRADES_TOPIC, SYMBOLS[symbol]), trades(ids, symbol))
        self.published[symbol].append(ids)

    def writer(self, name: str) -> TableWriter:
        if name not in self.writers:
            self.writers[name] = TableWriter(
                lake_settings(self.folder, max_rows=60),
                DataDir(self.folder),
                "trades",
                "",
                reader=MemoryReader(self.log, max_records=2),
                letters=MemoryLetters,
                faults=self.fault(name),
            )
        return self.writers[name]

    def fault(self, name: str) -> Any:
        return lambda point: self.faults.get(name, _nothing)(point)

    faults: dict[str, Any] = {}  # noqa: RUF012 - replaced for each story below

    def crash(self, name: str, point: str) -> None:
        self.faults = {**self.faults, name: kill_at(point)}
        try:
            self.writer(name).drain()
        except Killed:
            pass
        self.faults = {**self.faults, name: _nothing}
        self.writers.pop(name).close()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


def _nothing(_: str) -> None:
    return


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(story=st.lists(actions, min_size=4, max_size=16))
def test_any_interleaving_leaves_the_table_equal_to_the_truth(story: list[tuple[str, str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        told = Story(Path(folder))
        try:
            for action in story:
                told.run(*action)
            told.run("let go", "", 0)
            assert told.writer("last").drain()
            stored = open_table(Path(folder)).scan().to_arrow()
            found = Counter(zip(stored["symbol"].to_pylist(), stored["source_sequence"].to_pylist(), strict=True))
            truth = {(symbol, number) for symbol, stop in told.next.items() for number in range(1, stop)}
            assert {key for key, count in found.items() if count > 1} == set(), "stored twice"
            assert truth - set(found) == set(), "lost"
            assert set(found) - truth == set(), "never traded"
        finally:
            told.close()
