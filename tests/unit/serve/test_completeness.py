"""/v1/completeness and /v1/gaps over a table with a hole that was filled, one that is lost, and one that is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from k2ray.errors import SupervisorUnavailable
from serve.api import build_api
from tests.support.backfill_world import BackfillWorld, lost_filled_and_open
from tests.support.lake import NOON_US


class Supervisor:
    """Says what the backfill said last; None: away."""

    def __init__(self) -> None:
        self.backfill: dict[str, Any] | None = None

    def status(self) -> dict[str, Any]:
        if self.backfill is None:
            raise SupervisorUnavailable("the supervisor does not answer")
        return {"actors": [{"name": "backfill:binance#1", "role": "backfill", "detail": self.backfill}]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> BackfillWorld:
    """BTC: 3 lost, 5 to 6 filled, 1 to 9; ETH: 2 to 3 open."""
    return asyncio.run(lost_filled_and_open(BackfillWorld(tmp_path_factory.mktemp("completeness"))))


@pytest.fixture
async def client(world: BackfillWorld, supervisor: Supervisor) -> AsyncIterator[httpx.AsyncClient]:
    api = build_api(world.settings, supervisor.status)
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with api.router.lifespan_context(api), httpx.AsyncClient(transport=transport, base_url="http://k2") as found:
        yield found


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


async def test_completeness_of_every_kind(client: httpx.AsyncClient, supervisor: Supervisor) -> None:
    async def ask(**parameters: Any) -> list[dict[str, Any]]:
        answer = await client.get("/v1/completeness", params=parameters)
        assert answer.status_code == 200, answer.text
        data: list[dict[str, Any]] = answer.json()["data"]
        return data

    btc, eth = await ask()
    assert (btc["symbol"], btc["first_id"], btc["last_id"], btc["complete"], btc["proof"]) == (
        "BTCUSDT",
        1,
        9,
        False,
        "ids",
    )
    assert btc["proven_to"] == {"id": 2, "time": "2024-06-01T12:00:00.002000Z"}
    assert [(one["first_id"], one["last_id"], one["ids"], one["state"]) for one in btc["missing"]] == [
        (3, 3, 1, "lost")
    ]
    assert btc["reasons"] == ["1 ids are lost: the exchange does not have them any more"]
    assert (eth["missing_ids"], eth["missing"][0]["state"], eth["newest"]) == (2, "open", None)

    [later] = await ask(symbols="BTCUSDT", first_id=4, last_id=9, exchange="binance", channel="trades")
    assert (later["complete"], later["missing"], later["reasons"]) == (True, [], [])
    [by_time] = await ask(symbols="BTCUSDT", start=NOON_US + 5_000, end=NOON_US + 7_000)
    assert (by_time["first_id"], by_time["last_id"], by_time["complete"]) == (5, 6, False)
    assert "not proven up to the end" in by_time["reasons"][0]

    proof = {"asked_us": NOON_US + 60_000_000, "proven": True}
    supervisor.backfill = {
        "proofs": [
            {"channel": "trades", "symbol": "BTCUSDT", "newest_id": 9, **proof},
            {"channel": "trades", "symbol": "ETHUSDT", "newest_id": 5, **proof},
        ],
        "filling": [["trades", "ETHUSDT", 2, 2]],
    }
    [by_time] = await ask(symbols="BTCUSDT", start=NOON_US + 5_000, end=NOON_US + 7_000)
    assert by_time["complete"] is True
    assert by_time["newest"] == {"id": 9, "asked_at": "2024-06-01T12:01:00.000000Z"}
    [eth] = await ask(symbols="ETHUSDT")
    assert [(one["first_id"], one["state"]) for one in eth["missing"]] == [(2, "filling"), (3, "open"), (5, "open")]


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("channel=book", 400, "channel"),
        ("symbol=BTCUSDT", 400, "symbol"),
        ("first_id=a", 400, "first_id"),
        ("symbols=DOGEUSDT", 404, "symbols"),
        ("exchange=kraken", 404, "exchange"),
        ("channel=agg_trades&symbols=BTCUSDT", 404, "symbols"),
        ("start=2024-06-01T12:00:00Z&end=2024-06-01T11:00:00Z", 400, "end"),
    ],
)
async def test_what_cannot_be_answered_is_said(client: httpx.AsyncClient, query: str, status: int, field: str) -> None:
    answer = await client.get(f"/v1/completeness?{query}")
    assert (answer.status_code, answer.json()["field"]) == (status, field)


async def test_gaps_tell_what_became_of_them(client: httpx.AsyncClient) -> None:
    found = (await client.get("/v1/gaps")).json()
    rows = {(row["symbol"], row["first_id"], row["state"]): row for row in found["data"]}
    assert set(rows) == {
        ("BTCUSDT", first, state)
        for first, states in ((3, ("open", "lost")), (5, ("open", "filled")))
        for state in states
    }
    filled = rows["BTCUSDT", 5, "filled"]
    assert (filled["last_id"], filled["missing"], filled["table"]) == (6, 2, "trades")
    assert filled["opened_at"] < filled["closed_at"]
    assert "does not have these trades" in rows["BTCUSDT", 3, "lost"]["reason"]
    assert found["snapshot"] is not None
    lost = (await client.get("/v1/gaps?state=lost&symbols=BTCUSDT&exchange=binance&limit=5")).json()["data"]
    assert [row["first_id"] for row in lost] == [3]
    refused = await client.get("/v1/gaps?state=closed")
    assert (refused.status_code, refused.json()["field"]) == (400, "state")


async def test_without_any_gap_there_is_none(tmp_path: Path, supervisor: Supervisor) -> None:
    world = BackfillWorld(tmp_path / "fresh")
    api = build_api(world.settings, supervisor.status)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://k2") as client:
        assert (await client.get("/v1/gaps")).json()["data"] == []
        assert (await client.get("/v1/completeness")).status_code == 503, "the table does not exist yet"
