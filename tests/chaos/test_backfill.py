"""Gaps close themselves: things are killed or cut off, and in the end the ids are those that the exchange made."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.table import Table

from actors.names import wanted_actors
from actors.wanted import Wanted, write_wanted
from k2ray.lake.catalog import load_table, open_catalog
from tests.support.arena import PATIENCE_S, Arena, Verdict, standing_arena
from tests.support.eventually import eventually
from tests.support.ray_cluster import SmallCluster
from tests.support.sim import start_sim

pytestmark = pytest.mark.timeout(900)

RATE = 600
FEED, BACKFILL = "feed:binance:0", "backfill:binance"
SECTION = {
    "grace_s": 0.5,
    "interval_s": 0.3,
    "prove_interval_s": 1,
    "retry_s": 0.5,
    "lost_after_answers": 2,
    "weight_share": 1,
}


@pytest.fixture(scope="module")
def arena(ray: SmallCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("backfill")
    with start_sim(folder, rate=RATE) as sim, standing_arena(ray, folder / "data", sim, ("trades",), SECTION) as arena:
        arena.more_commits(rows=RATE)
        yield arena


def complete(arena: Arena) -> Verdict:
    """Wait until no id between the first and the last in Kafka is missing but for those said to be lost."""

    def look() -> Verdict | None:
        (verdict,) = arena.verify()
        assert (verdict.lost, verdict.duplicated, verdict.invented) == (0, 0, 0), verdict
        return verdict if verdict.never_produced == detail(arena).get("lost_ids", 0) else None

    return eventually(look, "no id is missing", timeout_s=PATIENCE_S, pause_s=0.5)


def detail(arena: Arena) -> dict[str, Any]:
    """Return what the backfill says about itself."""
    found: dict[str, Any] = arena.actor(BACKFILL).get("detail", {})
    return found


def events(arena: Arena) -> list[dict[str, Any]]:
    """Return the rows of the gaps table."""
    table = load_table(open_catalog(arena.settings, arena.layout), arena.settings, "gaps")
    assert table is None or isinstance(table, Table)
    rows: list[dict[str, Any]] = [] if table is None else table.scan().to_arrow().to_pylist()
    return rows


@pytest.mark.chaos
def test_a_reconnect_had_no_backfill(arena: Arena) -> None:
    """Trap 6, second half: what the exchange made while nobody was connected is fetched afterwards."""
    before = detail(arena).get("rows", 0)
    arena.sim.fault("close", how="abort")
    arena.sim.fault("outage", seconds=2)
    eventually(lambda: detail(arena).get("rows", 0) > before, "something is fetched", timeout_s=PATIENCE_S)
    arena.more_commits(rows=RATE)
    assert complete(arena).in_kafka > 0


@pytest.mark.chaos_full
def test_a_killed_feeds_gap_is_filled_and_recorded(arena: Arena) -> None:
    victim = arena.running(FEED)
    os.kill(victim["pid"], signal.SIGKILL)
    arena.running(FEED, after=victim["generation"])
    arena.more_commits(rows=RATE)
    complete(arena)
    filled = eventually(lambda: [row for row in events(arena) if row["state"] == "filled"], "it is recorded")
    assert all(row["closed_at"] >= row["opened_at"] for row in filled)
    rows = events(arena)
    assert len({row["event_id"] for row in rows}) == len(rows)


@pytest.mark.chaos_full
def test_ids_that_the_exchange_skipped_on_the_stream_are_fetched(arena: Arena) -> None:
    before = detail(arena)["rows"]
    arena.sim.fault("id_gap", count=20, symbol="ETHUSDT")
    eventually(lambda: detail(arena)["rows"] >= before + 20, "20 trades are fetched", timeout_s=PATIENCE_S)
    complete(arena)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        pytest.param(429, "limited", marks=pytest.mark.chaos),
        pytest.param(418, "banned", marks=pytest.mark.chaos_full),
    ],
)
def test_the_exchange_says_wait_and_is_obeyed(arena: Arena, code: int, outcome: str) -> None:
    def refused() -> int:
        return int(arena.sim.state()["counters"].get(f"rest_{code}", 0))

    before = refused()
    arena.sim.fault("rest_refuse", code=code, seconds=4)
    arena.sim.fault("id_gap", count=10, symbol="BTCUSDT")
    eventually(lambda: detail(arena)["calls"].get(outcome, 0) > 0, "it is refused", timeout_s=PATIENCE_S)
    assert detail(arena)["banned_s"] > 0
    complete(arena)
    # Questions that were under way together are all refused; afterwards nobody asks until the time is over.
    assert refused() - before <= 2 + 4


@pytest.mark.chaos
def test_trades_that_the_exchange_has_forgotten_are_lost_and_said_to_be(arena: Arena) -> None:
    def skipped() -> int:
        marks = [mark for mark in arena.sim.state()["altered"] if mark["symbol"] == "BNBUSDT"]
        return sum(mark["last_id"] - mark["first_id"] + 1 for mark in marks if mark["fault"] == "id_gap")

    # Refused for so long that the exchange forgets them before it can be asked, on a busy machine too.
    arena.sim.fault("rest_refuse", code=429, seconds=5)
    arena.sim.fault("id_gap", count=5, symbol="BNBUSDT")
    eventually(lambda: skipped() == 5, "the exchange skipped them", pause_s=0.01)
    arena.sim.fault("history_gone", symbol="BNBUSDT")
    eventually(lambda: detail(arena)["lost_ids"] >= 5, "they are given up", timeout_s=PATIENCE_S)
    lost = eventually(lambda: [row for row in events(arena) if row["state"] == "lost"], "it is recorded")
    assert "does not have these trades any more" in lost[-1]["reason"]
    pages = detail(arena)["pages"]
    arena.more_commits(rows=RATE)
    assert detail(arena)["pages"] - pages < 20, "what is lost is not asked for again"


@pytest.mark.chaos_full
def test_the_ids_are_complete_though_no_feed_ran_for_long(arena: Arena) -> None:
    wanted = {name: path for name, path in _wanted(arena).actors.items() if name != FEED}
    write_wanted(arena.layout.run, Wanted(1, arena.settings.to_json(), wanted, local_broker=True))
    eventually(lambda: not arena.actor(FEED).get("pid"), "the feed is gone", timeout_s=PATIENCE_S)
    arena.more_commits(rows=10 * RATE)  # the backfill alone keeps the table growing
    write_wanted(arena.layout.run, _wanted(arena))
    arena.running(FEED)
    complete(arena)


@pytest.mark.chaos_full
def test_a_backfill_killed_amid_a_gap_doubles_and_loses_nothing(arena: Arena) -> None:
    feed = arena.running(FEED)
    os.kill(feed["pid"], signal.SIGSTOP)
    for _ in range(3):
        victim = arena.running(BACKFILL)
        before = detail(arena).get("rows", 0)
        eventually(lambda at=before: detail(arena).get("rows", 0) != at, "it fetches", timeout_s=PATIENCE_S)
        os.kill(victim["pid"], signal.SIGKILL)
        arena.running(BACKFILL, after=victim["generation"])
    arena.running(FEED, after=feed["generation"])
    complete(arena)
    rows = events(arena)
    assert len({row["event_id"] for row in rows}) == len(rows)


@pytest.mark.chaos_full
def test_trades_missed_before_a_symbol_fell_silent_are_found_soon_after_the_reconnect(
    ray: SmallCluster, tmp_path: Path
) -> None:
    """Trap 6, second half: no later trade shows the gap, and the regular question is ten minutes away."""
    rate, frames = 20, 2_400
    section = {**SECTION, "prove_interval_s": 600}
    with (
        start_sim(tmp_path, rate=rate, frames=frames) as sim,
        standing_arena(ray, tmp_path / "data", sim, ("trades",), section) as arena,
    ):
        arena.more_commits(rows=rate)
        eventually(lambda: detail(arena).get("proofs"), "the first question is answered", timeout_s=PATIENCE_S)
        before, state = detail(arena), sim.state()
        assert state["generating"], "the machine was too slow for this case"
        sim.fault("close", how="abort")
        sim.fault("outage", seconds=(frames - state["trades"]) / rate + 3)  # the market ends meanwhile
        eventually(lambda: detail(arena)["asked_early"] > before["asked_early"], "it asks", timeout_s=200, pause_s=0.2)
        state = sim.state()
        assert not state["generating"]
        last = {symbol: made["trade"]["last_id"] for symbol, made in state["generated"].items()}
        missed = eventually(lambda: tail(arena, last), "the last trades are there", timeout_s=PATIENCE_S)
        assert min(missed.values()) > 0, missed


def tail(arena: Arena, last: dict[str, int]) -> dict[str, int]:
    """Return how many rows the backfill brought of each symbol; empty unless all ids from the first to the last are."""
    table = load_table(open_catalog(arena.settings, arena.layout), arena.settings, "trades")
    assert table is not None
    rows = table.scan(selected_fields=("symbol", "source_sequence", "origin")).to_arrow().to_pylist()
    found: dict[str, list[int]] = {symbol: [] for symbol in last}
    filled = dict.fromkeys(last, 0)
    for row in rows:
        found[row["symbol"]].append(row["source_sequence"])
        filled[row["symbol"]] += row["origin"] == "backfill"
    whole = all(sorted(ids) == list(range(min(ids), last[symbol] + 1)) for symbol, ids in found.items())
    return filled if whole else {}


def _wanted(arena: Arena) -> Wanted:
    from actors import edge

    actors = {name: edge.CHILD_CLASSES[name.split(":")[0]] for name in wanted_actors(arena.settings)}
    return Wanted(1, arena.settings.to_json(), actors, local_broker=True)
