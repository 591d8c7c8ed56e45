"""A cursor through the API, the supervisor's desk and real upkeep of a real table; only Ray between them is absent."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from pyiceberg.table import Table

from actors import edge
from actors.leases import LeaseDesk, LeasesHeard
from k2ray.clock import ManualClock
from k2ray.errors import SupervisorUnavailable
from k2ray.lake.upkeep import TableUpkeep
from k2ray.layout import DataDir
from k2ray.query.leases import heard_all_s
from k2ray.settings import Settings, load_settings
from serve.api import build_api
from serve.leases import TellLeases
from tests.support.compaction import clock_after, commit_small
from tests.support.lake import open_table

LEASE_S = 60.0
ROWS = 40

Told = Mapping[str, Mapping[int, float]]


def settings_of(folder: Path) -> Settings:
    upkeep = {"snapshots_kept": 2, "expire_every": 1, "compact": False}
    arguments = {"data_dir": str(folder), "lake": {"upkeep": upkeep}, "api": {"cursor_lease_s": LEASE_S}}
    return load_settings(arguments=arguments, environ={})


@contextlib.asynccontextmanager
async def client_of(folder: Path, tell: TellLeases) -> AsyncIterator[httpx.AsyncClient]:
    def status() -> dict[str, Any]:
        raise SupervisorUnavailable("not asked here")

    api = build_api(settings_of(folder), status, tell_leases=tell)
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with api.router.lifespan_context(api), httpx.AsyncClient(transport=transport, base_url="http://k2") as found:
        yield found


async def until(condition: Callable[[], object], what: str) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within 30 s: {what}")


async def page(client: httpx.AsyncClient, cursor: str | None) -> dict[str, Any]:
    answer = await client.get("/v1/trades", params={"limit": 50} | ({"cursor": cursor} if cursor else {}))
    return {**answer.json(), "status": answer.status_code}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = open_table(tmp_path)
    commit_small(table, 4, ROWS)
    return table


class Keeper:
    """The supervisor's desk behind `edge`, and upkeep of the table."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock()
        self.desk = LeaseDesk(self.clock)
        self.away = False
        patch.setattr(edge, "find", lambda _name, _namespace: self)
        patch.setattr(edge, "ask", lambda _handle, _method, table, timeout_s: self.desk.of(table))
        leases = LeasesHeard("space", "trades", LEASE_S, self.clock)
        self.upkeep = TableUpkeep(settings_of(folder), DataDir(folder), "trades", clock=clock_after(0), leases=leases)
        self.clock.advance(heard_all_s(LEASE_S))

    def tell(self, leases: Told) -> None:
        if self.away:
            raise SupervisorUnavailable("away")
        self.desk.note(leases)


async def test_a_cursor_outlives_expiry_until_its_lease_ends(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper(tmp_path, monkeypatch)
    async with client_of(tmp_path, keeper.tell) as client:
        first = await page(client, None)
        await until(lambda: int(first["snapshot"]) in keeper.desk.of("trades")[1], "the supervisor is told")
        second = await page(client, first["next_cursor"])
        commit_small(table, 4, ROWS)
        assert keeper.upkeep.step().snapshots_expired > 0
        again = await page(client, first["next_cursor"])
        assert again == second, "whatever is committed and expired, a page is the same"
        last = await page(client, second["next_cursor"])
        last = await page(client, last["next_cursor"])
        assert (len(last["data"]), last["next_cursor"], last["snapshot"]) == (10, None, first["snapshot"])

        keeper.away = True  # nothing is told any more, as after the client's last page
        keeper.clock.advance(10 * LEASE_S)
        assert keeper.upkeep.step().snapshots_expired == 1, "only the lease held it"
        gone = await page(client, first["next_cursor"])
        assert (gone["status"], gone["field"]) == (410, "cursor")
        assert "api.cursor_lease_s" in gone["detail"]
        assert gone["allowed"] == "the same question without cursor"
        assert len((await page(client, None))["data"]) == 50
    keeper.upkeep.close()


async def test_no_answer_waits_for_a_supervisor_that_hangs(tmp_path: Path, table: Table) -> None:
    released, hangs = threading.Event(), threading.Event()

    def tell(_leases: Told) -> None:
        hangs.set()
        released.wait(60)

    try:
        async with client_of(tmp_path, tell) as client:
            first = await page(client, None)
            await until(hangs.is_set, "the supervisor hangs")
            assert (await page(client, first["next_cursor"]))["status"] == 200
            released.set()
    finally:
        released.set()


async def test_a_replica_that_ends_tells_what_it_has_not_told(tmp_path: Path, table: Table) -> None:
    told: list[Told] = []
    async with client_of(tmp_path, told.append) as client:
        first = await page(client, None)
    assert int(first["snapshot"]) in told[-1]["trades"]


async def test_what_was_not_heard_is_told_again(tmp_path: Path, table: Table) -> None:
    told: list[Told] = []

    def tell(leases: Told) -> None:
        told.append(leases)
        if len(told) == 1:
            raise SupervisorUnavailable("it was just killed")

    async with client_of(tmp_path, tell) as client:
        await client.get("/v1/bars", params={"limit": 1, "interval": "1s"})
        await until(lambda: len(told) == 2, "it is told again")
    assert [list(leases) for leases in told] == [["trades"], ["trades"]]
