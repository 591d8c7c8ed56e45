"""A client pages on while the supervisor is killed and real upkeep expires everything else; then its lease ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pyiceberg.table import Table

from actors import edge
from actors.names import SUPERVISOR
from actors.supervisor import system_status
from actors.wanted import Wanted, write_wanted
from k2ray.errors import SupervisorUnavailable
from k2ray.lake.upkeep_plan import TAG_PREFIX
from k2ray.layout import DataDir
from k2ray.settings import Settings
from tests.support.compaction import commit_small
from tests.support.eventually import eventually
from tests.support.lake import open_table
from tests.support.ray_cluster import SmallCluster

ROWS = 40
LEASE_S = 10


class Keepers:
    """A supervisor with upkeep of one table, as `k2ray up` makes them."""

    def __init__(self, settings: Settings) -> None:
        self.layout = DataDir(settings.data_dir)
        actors = {"upkeep:trades": edge.CHILD_CLASSES["upkeep"]}
        self._wanted = Wanted(1, settings.to_json(), actors)
        write_wanted(self.layout.run, self._wanted)
        edge.start_supervisor(self.layout.namespace, str(self.layout.root))

    def actor(self, logical: str) -> dict[str, Any]:
        try:
            actors = system_status(self.layout.namespace, 10)["actors"]
        except SupervisorUnavailable:
            return {}
        return next((actor for actor in actors if actor["name"].split("#")[0] == logical), {})

    def leased(self) -> set[int]:
        try:
            supervisor = edge.find(SUPERVISOR, self.layout.namespace)
            _, leases = edge.ask(supervisor, "leases", "trades", timeout_s=10)
        except SupervisorUnavailable:
            return set()
        return set(leases)

    def stop(self) -> None:
        for name in edge.list_children(self.layout.namespace):
            edge.kill(str(name), self.layout.namespace, None, None)
        edge.kill(SUPERVISOR, self.layout.namespace, None, None)


@pytest.fixture
def settings(ray: SmallCluster, tmp_path: Path) -> Settings:
    upkeep = {"interval_s": 0.5, "snapshots_kept": 2, "expire_every": 1, "compact": False}
    return ray.settings(tmp_path, lake={"upkeep": upkeep}, api={"cursor_lease_s": LEASE_S})


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = open_table(tmp_path)
    commit_small(table, 1, ROWS)
    oldest = table.metadata.current_snapshot_id
    assert oldest is not None
    for hours in range(2):  # else upkeep may tag the very snapshot that is paged through, and it stays for a week
        tag = (datetime.now(UTC) + timedelta(hours=hours)).strftime(f"{TAG_PREFIX}%Y-%m-%dT%HZ")
        table.manage_snapshots().create_tag(oldest, tag).commit()
    commit_small(table, 3, ROWS)
    return table


@pytest.fixture
def client(ray: SmallCluster, settings: Settings, table: Table, free_port: Callable[[], int]) -> Iterator[httpx.Client]:
    from ray import serve

    from serve.app import app

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(app({"settings": settings.to_json()}), name="leases", route_prefix="/", blocking=False)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as found:
            eventually(lambda: found.get("/health").status_code == 200, "the replica answers", timeout_s=90)
            yield found
    finally:
        serve.shutdown()


@pytest.fixture
def keepers(ray: SmallCluster, settings: Settings, table: Table) -> Iterator[Keepers]:
    keepers = Keepers(settings)
    yield keepers
    keepers.stop()


def page(client: httpx.Client, cursor: str | None) -> dict[str, Any]:
    answer = client.get("/v1/trades", params={"limit": 50} | ({"cursor": cursor} if cursor else {}))
    return {**answer.json(), "status": answer.status_code}


def snapshots(table: Table) -> set[int]:
    table.refresh()
    return {snapshot.snapshot_id for snapshot in table.metadata.snapshots}


@pytest.mark.timeout(600)  # on a starved machine Ray and Serve alone take 90 s to start
@pytest.mark.chaos_full
def test_a_client_pages_on_through_a_killed_supervisor_until_its_lease_ends(
    client: httpx.Client, table: Table, keepers: Keepers
) -> None:
    eventually(lambda: keepers.actor("upkeep:trades").get("state") == "running", "upkeep runs", timeout_s=120)
    first = page(client, None)
    mine = int(first["snapshot"])
    second = page(client, first["next_cursor"])
    eventually(lambda: mine in keepers.leased(), "the supervisor is told", timeout_s=60)

    killed = keepers.actor(SUPERVISOR)["pid"]
    os.kill(killed, signal.SIGKILL)
    before = snapshots(table)
    commit_small(table, 4, ROWS)

    def others_expired() -> bool:
        assert page(client, first["next_cursor"]) == second, "each of these is a page, and renews the lease"
        # What stays: the tagged one, the leased one, and the two newest.
        return len(snapshots(table)) == 4

    eventually(others_expired, "upkeep expires what nobody reads", timeout_s=150, pause_s=0.5)
    assert mine in snapshots(table)
    assert len(before & snapshots(table)) == 2
    assert keepers.actor(SUPERVISOR)["pid"] != killed
    third = page(client, second["next_cursor"])
    last = page(client, third["next_cursor"])
    ids = [row["source_sequence"] for one in (first, second, third, last) for row in one["data"]]
    assert sorted(ids) == list(range(4 * ROWS)), "every row of the snapshot once, and none of a later one"
    assert last["next_cursor"] is None

    eventually(lambda: mine not in snapshots(table), "the lease ends", timeout_s=150)
    gone = page(client, first["next_cursor"])
    assert (gone["status"], gone["field"]) == (410, "cursor")
    assert "its snapshot has expired" in gone["detail"]
