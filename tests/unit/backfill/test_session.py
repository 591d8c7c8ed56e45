"""A backfill against a made-up exchange, a log in memory and a real table: gaps close, by ids, whatever happens."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from k2ray import metrics
from tests.support.backfill_world import BackfillWorld, until


@pytest.fixture
def world(tmp_path: Path) -> BackfillWorld:
    return BackfillWorld(tmp_path)


def everything(last: int, first: int = 1) -> list[int]:
    return list(range(first, last + 1))


async def test_a_gap_is_filled_with_rows_like_the_live_ones(world: BackfillWorld) -> None:
    world.publish([1, 2, 3, 8, 9])
    async with world.running():
        await until(lambda: world.stored() == everything(9), "the gap is filled")
    rows = {row["source_sequence"]: row for row in world.rows()}
    live, filled = rows[3], rows[4]
    assert [rows[i]["origin"] for i in everything(9)] == ["live"] * 3 + ["backfill"] * 4 + ["live"] * 2
    assert str(filled["price"]) == "4.500000000000000000"
    assert (filled["trade_id"], filled["side"], filled["currency"]) == ("4", "SELL", "USDT")
    assert filled["timestamp"] - live["timestamp"] == (rows[2]["timestamp"] - rows[1]["timestamp"])
    same = ("exchange", "symbol", "asset_class", "sequence_space", "trade_conditions", "vendor_data", "currency")
    assert {key: filled[key] for key in same} == {key: live[key] for key in same}


async def test_trades_after_the_last_row_are_fetched_and_proven(world: BackfillWorld) -> None:
    world.publish([1, 2, 3])
    world.exchange.newest["BTCUSDT"] = 2_500
    async with world.running():
        await until(lambda: world.stored() == everything(2_500), "the tail is filled")
        proof = {"channel": "trades", "symbol": "BTCUSDT", "newest_id": 2_500, "proven": True}
        await until(
            lambda: any(proof.items() <= shown.items() for shown in world.session.status().proofs), "and proven"
        )
    assert max(limit for _, limit in world.exchange.pages) == 1_000


async def test_nothing_is_fetched_twice_while_it_waits_for_its_commit(world: BackfillWorld) -> None:
    world.publish([1, 2, 9])
    async with world.running():
        await until(lambda: len(world.stored()) == 9, "the gap is filled")
        pages = len(world.exchange.pages)
    world.publish([20])
    async with world.writing():
        await until(lambda: len(world.stored()) == 10, "a gap without anybody who fills it")
    await world.crash()
    async with world.running(writing=False):
        await until(lambda: len(world.exchange.pages) > pages, "it is fetched")
        await asyncio.sleep(0.5)
        assert world.session.status().filling == [("trades", "BTCUSDT", 10, 19)]
        assert len(world.exchange.pages) == pages + 1


async def test_a_crash_only_fetches_again(world: BackfillWorld) -> None:
    world.publish([1, 2, 900, 5_000])
    for _ in range(3):
        async with world.running(writing=False):
            before = len(world.exchange.pages)
            async with world.writing():
                await until(lambda at=before: len(world.exchange.pages) > at or len(world.stored()) == 5_000, "a page")
        await world.crash()
    async with world.running():
        await until(lambda: len(world.stored()) >= 5_000, "all is there")
    assert world.stored() == everything(5_000)
    ids = [event["event_id"] for event in world.events()]
    assert len(set(ids)) == len(ids)


async def test_what_the_exchange_has_forgotten_is_lost_and_not_asked_for_again(world: BackfillWorld) -> None:
    world.publish([1, 2, 9])
    world.exchange.horizon = 6
    async with world.running():
        await until(lambda: world.session.status().lost_ids == 3, "ids are given up")
        await until(lambda: world.stored() == [1, 2, 6, 7, 8, 9], "the others came")
        pages = len(world.exchange.pages)
        await asyncio.sleep(0.5)
        assert len(world.exchange.pages) == pages
        await until(lambda: [event for event in world.events() if event["state"] == "lost"], "it is recorded")
    (lost,) = [event for event in world.events() if event["state"] == "lost"]
    assert (lost["first_id"], lost["last_id"], lost["missing"]) == (3, 5, 3)
    assert "does not have these trades" in lost["reason"]


async def test_a_trade_that_cannot_be_stored_is_a_dead_letter_and_its_id_lost(world: BackfillWorld) -> None:
    world.publish([1, 2, 6])
    world.exchange.strange = {4}
    async with world.running():
        await until(lambda: world.session.status().lost_ids == 1, "it is given up")
        await until(lambda: world.stored() == [1, 2, 3, 5, 6], "its neighbours came")
    assert [letter[3] for letter in world.producer.letters] == ["backfill:trades:BTCUSDT"]


@pytest.mark.parametrize(
    ("status", "outcome", "said"),
    [
        (429, "limited", {"retry-after": "1"}),
        (418, "banned", {"retry-after": "Tue, 24 Nov 2026 12:00:01 GMT", "date": "Tue, 24 Nov 2026 12:00:00 GMT"}),
    ],
)
async def test_no_question_is_sent_before_retry_after_is_over(
    world: BackfillWorld, status: int, outcome: str, said: dict[str, str]
) -> None:
    """Going on regardless is what turns a 429 into a ban."""
    refused = metrics.BACKFILL_CALLS.labels("binance", outcome)
    before = refused._value.get()
    world.publish([1, 2, 9])
    world.exchange.replies = [(status, said)]
    async with world.running():
        await until(lambda: metrics.BACKFILL_BANNED_SECONDS.labels("binance")._value.get() > 0, "the wait is shown")
        await until(lambda: len(world.stored()) == 9, "the gap is filled")
    pauses = [later - earlier for earlier, later in pairwise(world.exchange.times)]
    assert pauses[0] >= 1.0
    assert refused._value.get() == before + 1
    assert world.budget.bans == [1.0]
    assert world.session.status().calls[outcome] == 1


async def test_an_exchange_that_is_away_is_asked_again_until_it_answers(world: BackfillWorld) -> None:
    world.publish([1, 2, 9])
    world.exchange.away = True
    async with world.running():
        await until(lambda: "refused" in world.session.status().trouble, "it says what is in the way")
        world.exchange.away = False
        await until(lambda: len(world.stored()) == 9, "the gap is filled")
        await until(lambda: world.session.status().trouble == "", "nothing is in the way any more")


async def test_an_answer_that_is_not_json_is_no_answer(world: BackfillWorld) -> None:
    world.publish([1, 2, 9])
    world.exchange.replies = [(200, {})] * 3 + [(500, {})] * 2
    async with world.running():
        await until(lambda: len(world.stored()) == 9, "the gap is filled")


async def test_one_symbol_that_the_exchange_refuses_does_not_stop_the_others(world: BackfillWorld) -> None:
    world.publish([1, 2, 9])
    world.exchange.replies = [(400, {})] * 2  # to both together, then to the first by itself
    async with world.running():
        world.publish([1, 2, 9], "ETHUSDT")
        await until(lambda: len(world.stored("ETHUSDT")) == 9, "the gap is filled")
    assert world.session.status().calls["refused"] == 2


async def test_nothing_more_is_asked_while_the_log_is_away(world: BackfillWorld) -> None:
    world.publish([1, 2, 9_000])
    world.producer.stalled = True
    async with world.running():
        await until(lambda: "Kafka" in world.session.status().trouble, "it says what is in the way")
        pages = len(world.exchange.pages)
        await asyncio.sleep(0.5)
        assert len(world.exchange.pages) == pages
        world.producer.stalled = False
        await until(lambda: len(world.stored()) == 9_000, "the gap is filled")


async def test_requests_keep_within_the_share_of_the_weight(tmp_path: Path) -> None:
    world = BackfillWorld(tmp_path, weight_share=0.02, prove_interval_s=100)  # 120 a minute: four pages and change
    world.publish([1, 100_000])
    async with world.running():
        await until(lambda: len(world.exchange.pages) >= 3, "some pages")
        await asyncio.sleep(0.5)
        assert len(world.exchange.pages) <= 4
        assert world.session.status().weight_left < 25
        assert metrics.BACKFILL_WEIGHT_LEFT.labels("binance")._value.get() < 25
    assert world.budget.granted <= 120


async def test_what_became_of_gaps_is_recorded_once_and_counted(world: BackfillWorld) -> None:
    def counted(kind: str) -> float:
        return metrics.GAP_EVENTS.labels("binance", kind)._value.get()

    before = {kind: counted(kind) for kind in ("opened", "filled", "lost")}
    rows = metrics.BACKFILL_ROWS.labels("binance")._value.get()
    world.exchange.away = True
    world.publish([1, 2, 5, 9])
    world.publish([1, 4], "ETHUSDT")
    async with world.running():
        await until(lambda: len(world.events()) == 3, "three gaps")
        assert metrics.GAP_MISSING_IDS.labels("binance")._value.get() == 7
        await until(lambda: metrics.GAP_OLDEST_SECONDS.labels("binance")._value.get() > 0, "they have an age")
    await world.crash()
    world.exchange.away = False
    async with world.running():
        await until(lambda: len(world.events()) == 6, "three are filled")
        snapshots = metrics.TABLE_SNAPSHOTS.labels("gaps")._value
        snapshots.set(0)
        await until(lambda: snapshots.get() >= 3, "upkeep looks after the history: genesis, opened, filled")
    events = world.events()
    assert sorted(event["event_id"] for event in events) == sorted(
        f"trades/binance/{symbol}//{ids}/{state}"
        for symbol, ids in (("BTCUSDT", "3-4"), ("BTCUSDT", "6-8"), ("ETHUSDT", "2-3"))
        for state in ("open", "filled")
    )
    opened = {(event["symbol"], event["first_id"]): event["opened_at"] for event in events if event["state"] == "open"}
    for event in events:
        assert event["opened_at"] == opened[event["symbol"], event["first_id"]], "the crash forgot nothing"
        assert (event["closed_at"] is None) == (event["state"] == "open")
    assert (counted("opened") - before["opened"], counted("filled") - before["filled"]) == (3, 3)
    assert metrics.BACKFILL_ROWS.labels("binance")._value.get() >= rows + 7
