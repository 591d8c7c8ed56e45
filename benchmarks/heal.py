"""Time from kill -9 to healed, per process of a whole system under load; the aim is below 5 s.

python -m benchmarks.heal [--quick] [--only NAME ...]

Healed is more than running: a feed has sent its first row after the kill, a writer has landed its first commit, upkeep
and backfill have looked at their tables, the API answers a query, the broker takes rows again, and the supervisor's
status shows all actors. Seen through `/v1/status`, whose reports are up to a second old (`health_interval_s`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.report import report
from benchmarks.system import System, running_system
from k2ray.layout import DataDir
from k2ray.log.broker import LocalBroker

RATE = 3_000
SYMBOLS = ("BTCUSDT", "ETHUSDT")
AIM_S = 5.0
PATIENCE_S = 180.0
SETTLE_S = 3.0
LOOK_S = 0.1

FORGIVING = {"K2RAY_SUPERVISION__CRASH_LOOP_S": "1"}
"""Each kill counts as the first one: a crash loop is delayed on purpose, and that is not what is measured."""

Actors = dict[str, dict[str, Any]]


def look(system: System) -> Actors:
    """Return the actors by logical name; nobody while the supervisor does not answer."""
    try:
        actors = system.status()["actors"]
    except (httpx.HTTPError, KeyError):
        return {}
    return {actor["name"].split("#")[0]: actor for actor in actors}


def wait(what: str, condition: Callable[[], bool]) -> float:
    """Return when the condition holds."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if condition():
            return time.monotonic()
        time.sleep(LOOK_S)
    raise SystemExit(f"not healed within {PATIENCE_S:g} s: {what}")


def detail(field: str) -> Callable[[dict[str, Any]], bool]:
    """Return whether an actor has counted something since its process began."""
    return lambda actor: actor["detail"].get(field, 0) > 0


@dataclass(frozen=True)
class Victim:
    """An actor, and what its new generation reports once its work goes on."""

    name: str
    means: str
    healed: Callable[[dict[str, Any]], bool]

    def kill(self, system: System) -> float:
        """Kill it and return the seconds until its successor's work goes on."""
        before = look(system)[self.name]
        started_s = time.monotonic()
        os.kill(before["pid"], signal.SIGKILL)

        def healed() -> bool:
            actor = look(system).get(self.name)
            return actor is not None and actor["generation"] > before["generation"] and self.healed(actor)

        return wait(self.name, healed) - started_s


class Supervisor:
    """Ray itself starts it anew; it adopts the living."""

    name = "supervisor"
    means = "status shows all again"

    def kill(self, system: System) -> float:
        """Kill it and return the seconds until its status shows everybody."""
        before = look(system)
        started_s = time.monotonic()
        os.kill(before[self.name]["pid"], signal.SIGKILL)

        def healed() -> bool:
            actors = look(system)
            back = actors.get(self.name, {}).get("pid") not in {None, before[self.name]["pid"]}
            return back and actors.keys() == before.keys() and all(a["state"] == "running" for a in actors.values())

        return wait(self.name, healed) - started_s


class Replica:
    """The only replica of the API; with `api.replicas: 2` the other one would answer meanwhile."""

    name = "HTTP replica"
    means = "first answer of another one"

    def kill(self, system: System) -> float:
        """Kill it and return the seconds until another one answers a query."""
        (before,) = replica_pids(system)
        started_s = time.monotonic()
        os.kill(before, signal.SIGKILL)
        url = f"{system.url}/v1/trades?symbols={SYMBOLS[0]}&limit=1"

        def healed() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(url, timeout=5).status_code == 200 and before not in replica_pids(system)
            return False

        return wait(self.name, healed) - started_s


class Broker:
    """The local Kafka, of a single node: nothing is lost, rows wait in the feeds meanwhile."""

    name = "broker"
    means = "first row it takes after"

    def kill(self, system: System) -> float:
        """Kill it and return the seconds until a feed says that more rows were delivered."""
        address = LocalBroker(DataDir(system.settings.data_dir)).status(timeout_s=1).address
        assert address is not None
        os.kill(address.pid, signal.SIGKILL)
        started_s = time.monotonic()
        restarts = system.status()["broker"]["restarts"]
        wait(self.name, lambda: system.status()["broker"]["restarts"] > restarts)
        delivered = look(system)["feed:binance:0"]["detail"]["rows_delivered"]

        def healed() -> bool:
            found: int = look(system).get("feed:binance:0", {}).get("detail", {}).get("rows_delivered", 0)
            return found > delivered

        return wait(self.name, healed) - started_s


def replica_pids(system: System) -> list[int]:
    """Return the pids of the API's replicas: of this system's Ray, others may run beside it."""
    temp, found = str(DataDir(system.settings.data_dir).ray_temp), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(part.startswith("ray::ServeReplica:") for part in process.cmdline()[:1]):
                parent = process.parent()
                if parent is not None and temp in " ".join(parent.cmdline()):
                    found.append(process.pid)
    return found


VICTIMS = (
    Victim("feed:binance:0", "first row after", detail("rows")),
    Victim("writer:trades", "first commit after", detail("commits")),
    Victim("upkeep:trades", "first look after", detail("looks")),
    Victim("backfill:binance", "first look after", detail("looks")),
    Victim("serializer", "answers again", lambda actor: bool(actor["ready"])),
)
ALL = (*VICTIMS, Supervisor(), Replica(), Broker())


def row_of(name: str, means: str, times_s: list[float]) -> dict[str, Any]:
    return {
        "killed": name,
        "healed_means": means,
        "kills": len(times_s),
        "median_s": round(statistics.median(times_s), 2),
        "best_s": round(min(times_s), 2),
        "worst_s": round(max(times_s), 2),
        "aim_met": statistics.median(times_s) < AIM_S,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="each is killed twice")
    parser.add_argument(
        "--only", nargs="+", choices=[one.name for one in ALL], help="kill only these; no result is kept"
    )
    parser.add_argument("--keep", type=Path, help="run in this empty folder and keep it, with its logs")
    arguments = parser.parse_args()
    kills = 2 if arguments.quick else arguments.kills
    os.environ.update(FORGIVING)
    rows = []
    with (
        contextlib.nullcontext(arguments.keep)
        if arguments.keep
        else tempfile.TemporaryDirectory(prefix="k2ray-heal-") as folder,
        running_system(Path(folder), rate=RATE, symbols=SYMBOLS) as system,
    ):
        wait(
            "the start",
            lambda: all(one.healed(look(system).get(one.name, {"detail": {}, "ready": False})) for one in VICTIMS),
        )
        for one in ALL:
            if arguments.only and one.name not in arguments.only:
                continue
            times_s = []
            for _ in range(kills):
                time.sleep(SETTLE_S)
                times_s.append(one.kill(system))
                print(f"  {time.strftime('%H:%M:%S')} {one.name}: {times_s[-1]:.2f} s", flush=True)
            rows.append(row_of(one.name, one.means, times_s))
    if arguments.only:
        print(rows)
        return
    report(
        "heal",
        rows,
        f"kill -9 of one process of a system that records {RATE:,} trades/s, again and again; seconds as seen through "
        f"/v1/status, whose reports are up to 1 s old. crash_loop_s=1, so that no delay grows. Aim: below {AIM_S:g} s.",
    )


if __name__ == "__main__":
    main()
