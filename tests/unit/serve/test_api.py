"""The FastAPI app by itself: no socket, no Ray; every error is a problem+json that helps."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from k2ray.errors import SupervisorUnavailable
from k2ray.settings import Binance, Exchanges
from serve.api import build_api
from tests.support.market_tables import START_US, MarketTables, quote, trade

ARROW = "application/vnd.apache.arrow.stream"


class Supervisor:
    """A supervisor that can be told to be away."""

    def __init__(self) -> None:
        self.away = False

    def status(self) -> dict[str, Any]:
        if self.away:
            raise SupervisorUnavailable("the supervisor does not answer")
        return {"level": 0, "actors": []}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> MarketTables:
    found = MarketTables(tmp_path_factory.mktemp("api"))
    found.append("trades", [trade(n, price="0.00012345", quantity="12345678901.5") for n in range(20)])
    found.append("quotes", [quote(n) for n in range(3)])
    return found


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


async def client_of(tables: MarketTables, supervisor: Supervisor) -> AsyncIterator[httpx.AsyncClient]:
    api = build_api(tables.settings, supervisor.status)
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with api.router.lifespan_context(api), httpx.AsyncClient(transport=transport, base_url="http://k2") as found:
        yield found


@pytest.fixture
async def client(tables: MarketTables, supervisor: Supervisor) -> AsyncIterator[httpx.AsyncClient]:
    async for found in client_of(tables, supervisor):
        yield found


async def test_trades_are_answered_with_snapshot_and_cursor(client: httpx.AsyncClient) -> None:
    found = (await client.get("/v1/trades", params={"symbols": "BTCUSDT", "limit": 12})).json()
    assert len(found["data"]) == 12
    row = found["data"][0]
    assert (row["price"], row["quantity"]) == ("0.00012345", "12345678901.5")
    assert row["timestamp"] == "2026-01-01T00:00:00.000000Z"
    assert isinstance(found["snapshot"], str)
    rest = await client.get("/v1/trades", params={"symbols": "BTCUSDT", "cursor": found["next_cursor"]})
    assert [row["trade_id"] for row in rest.json()["data"]] == [str(n) for n in range(12, 20)]
    assert rest.json()["next_cursor"] is None


async def test_fields_choose_columns_in_their_order(client: httpx.AsyncClient) -> None:
    found = (await client.get("/v1/quotes", params={"fields": "ask_price,symbol", "limit": 1})).json()
    assert list(found["data"][0].items()) == [("ask_price", "67000.12"), ("symbol", "BTCUSDT")]


async def test_arrow_holds_the_same_rows_with_their_types(client: httpx.AsyncClient) -> None:
    for answer in (
        await client.get("/v1/trades", params={"format": "arrow", "limit": 5}),
        await client.get("/v1/trades", params={"limit": 5}, headers={"Accept": ARROW}),
    ):
        assert answer.headers["content-type"] == ARROW
        table = pa.ipc.open_stream(answer.content).read_all()
        assert table["trade_id"].to_pylist() == ["0", "1", "2", "3", "4"]
        assert table.schema.field("price").type == pa.decimal128(38, 18)
        assert table.schema.metadata[b"next_cursor"].decode() == answer.headers["x-k2ray-next-cursor"]
        assert table.schema.metadata[b"snapshot"].decode() == answer.headers["x-k2ray-snapshot"]


async def test_bars_symbols_and_snapshots(client: httpx.AsyncClient) -> None:
    [bar] = (await client.get("/v1/bars", params={"interval": "1m", "exchange": "binance"})).json()["data"]
    assert (bar["count"], bar["vwap"], bar["exact"]) == (20, "0.00012345", True)
    assert bar["volume"] == "246913578030"
    [symbol] = (await client.get("/v1/symbols", params={"table": "quotes"})).json()["data"]
    assert (symbol["symbol"], symbol["rows"]) == ("BTCUSDT", 3)
    found = (await client.get("/v1/snapshots")).json()
    assert found["data"][0]["snapshot_id"] == found["snapshot"]


@pytest.mark.parametrize(
    ("path", "field", "part"),
    [
        ("/v1/trades?symbol=BTCUSDT", "symbol", "did you mean 'symbols'?"),
        ("/v1/trades?limit=0", "limit", "not a limit"),
        ("/v1/trades?start=2026-01-01T00:00:00", "start", "no time zone"),
        ("/v1/trades?limit=1&limit=2", "limit", "more than once"),
        ("/v1/trades?cursor=abc", "cursor", "damaged"),
        ("/v1/trades?format=csv", "format", "not a format"),
        ("/v1/trades?interval=1m", "interval", "unknown parameter"),
        ("/v1/bars?interval=2d", "interval", "longer than a day"),
        ("/v1/symbols?table=book", "table", "not a table"),
        ("/v1/snapshots?limit=x", "limit", "not a limit"),
        ("/v1/status?x=1", "x", "unknown parameter"),
        ("/health?x=1", "x", "unknown parameter"),
    ],
)
async def test_a_bad_request_names_the_field_and_what_is_allowed(
    client: httpx.AsyncClient, path: str, field: str, part: str
) -> None:
    answer = await client.get(path)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (found["status"], found["field"]) == (400, field)
    assert part in found["detail"]
    assert found["allowed"]


async def test_other_paths_and_methods_are_problems_too(client: httpx.AsyncClient) -> None:
    missing, wrong = await client.get("/v1/trade"), await client.post("/v1/trades")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert "/v1/trades" in missing.json()["allowed"]
    assert wrong.json()["allowed"] == wrong.headers["allow"] == "GET"


async def test_nothing_that_matches_is_an_empty_answer(client: httpx.AsyncClient) -> None:
    found = await client.get("/v1/trades", params={"symbols": "NOSUCH"})
    assert (found.status_code, found.json()["data"]) == (200, [])


async def test_a_failing_part_is_503_and_never_an_empty_answer(tmp_path: Path, supervisor: Supervisor) -> None:
    """TRAPS 11: either source failing gave []."""
    tables = MarketTables(tmp_path / "data")
    async for client in client_of(tables, supervisor):
        before = await client.get("/v1/trades")
        assert (before.status_code, before.headers["retry-after"]) == (503, "1")
        assert "does not exist yet" in before.json()["detail"]
        assert (await client.get("/ready")).json()["ready"] is False
        tables.append("trades", [trade(1)])
        tables.create("quotes")
        assert (await client.get("/ready")).json() == {"ready": True, "tables": "ok", "supervisor": "ok"}
        for file in tables.layout.warehouse.rglob("*.parquet"):
            file.unlink()
        for path in ("/v1/trades", "/v1/bars", "/v1/symbols"):
            assert (await client.get(path)).status_code == 503, path


async def test_ready_needs_only_the_tables_that_are_recorded(tmp_path: Path, supervisor: Supervisor) -> None:
    tables = MarketTables(tmp_path / "data")
    binance = Binance(channels=("trades",))
    tables.settings = tables.settings.model_copy(update={"exchanges": Exchanges(binance=binance)})
    async for client in client_of(tables, supervisor):
        assert (await client.get("/ready")).status_code == 503
        tables.create("trades")
        assert (await client.get("/ready")).status_code == 200


async def test_a_mistake_of_ours_is_500_without_insides(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("k2ray.query.engine.QueryEngine.rows", fail)
    with capture_logs() as logs:
        answer = await client.get("/v1/trades")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret detail" not in answer.text
    assert [entry["kind"] for entry in logs] == ["ZeroDivisionError"]


async def test_ready_needs_the_supervisor_and_health_does_not(
    client: httpx.AsyncClient, supervisor: Supervisor
) -> None:
    assert (await client.get("/ready")).status_code == 200
    assert (await client.get("/v1/status")).json() == {"level": 0, "actors": []}
    supervisor.away = True
    ready = await client.get("/ready")
    assert (ready.status_code, ready.json()["tables"]) == (503, "ok")
    assert (await client.get("/v1/status")).status_code == 503
    assert (await client.get("/health")).status_code == 200


async def test_a_full_replica_says_so_while_health_answers(
    tables: MarketTables, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.api.QUERY_THREADS", 1)
    monkeypatch.setattr("serve.api.QUERIES_WAITING", 1)
    entered, go = threading.Event(), threading.Event()

    def wait(*_: object) -> Any:
        entered.set()
        assert go.wait(20)
        raise SupervisorUnavailable("done")

    monkeypatch.setattr("k2ray.query.engine.QueryEngine.rows", wait)
    async for client in client_of(tables, supervisor):
        waiting = [asyncio.create_task(client.get("/v1/trades")) for _ in range(2)]
        await asyncio.to_thread(entered.wait, 20)
        # The first one is inside, so the loop has long begun the second, which waits for the only thread.
        refused = await client.get("/v1/trades")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        go.set()
        await asyncio.gather(*waiting)


async def test_a_large_answer_comes_in_chunks(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("serve.formats", "serve.answers"):
        monkeypatch.setattr(f"{module}.ROWS_PER_CHUNK", 3)
    answer = await client.get("/v1/trades")
    assert "content-length" not in answer.headers
    assert [row["trade_id"] for row in answer.json()["data"]] == [str(n) for n in range(20)]
    arrow = await client.get("/v1/trades", params={"format": "arrow"})
    assert pa.ipc.open_stream(arrow.content).read_all().num_rows == 20


async def test_every_metric_of_the_api_moves(client: httpx.AsyncClient) -> None:
    """TRAPS 27: metrics were never set."""
    names = (
        'k2ray_http_requests_total{actor="api",route="/v1/trades",status="200"}',
        'k2ray_http_seconds_count{actor="api",route="/v1/trades"}',
        "k2ray_query_rows_total",
        "k2ray_query_files_total",
    )

    async def values() -> list[float]:
        lines = (await client.get("/metrics")).text.splitlines()
        return [next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0) for name in names]

    before = await values()
    await client.get("/v1/trades", params={"start": str(START_US)})
    after = await values()
    assert all(later > earlier for earlier, later in zip(before, after, strict=True))


async def test_openapi_documents_every_parameter_with_an_example(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert {"/v1/trades", "/v1/quotes", "/v1/bars", "/v1/symbols", "/v1/snapshots", "/v1/status"} <= set(
        document["paths"]
    )
    for name in ("trades", "quotes", "bars", "symbols", "snapshots"):
        described = document["paths"][f"/v1/{name}"]["get"]
        for parameter in described["parameters"]:
            assert parameter["description"]
            assert "example" in parameter or parameter["name"] == "cursor"
        example = described["responses"]["200"]["content"]["application/json"]["example"]
        live = (await client.get(f"/v1/{name}", params={"limit": 1} if name != "symbols" else {})).json()
        assert set(live) == set(example)
        assert set(example["data"][0]) <= set(live["data"][0]), "the example names columns that exist"
        assert json.dumps(example)
