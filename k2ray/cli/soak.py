"""`k2ray soak`: the whole system under a simulated exchange for hours, judged at the end by ids and by its samples.

The real thing, started as `k2ray demo` does. `--compress` shortens schedules only (rotations, pings, the exchange's
day): network timeouts, and the code, stay what they are. Each of the exchange's days has a shutdown notice and, where
it cannot lose anything for good, a cut as at 24 h: on request, since connections that rotate never live that long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.table import Table as Grid

from k2ray.cli.own_system import Stopped, choose_port, interruptible, make_empty, run_command
from k2ray.errors import K2rayError
from k2ray.layout import DataDir
from k2ray.settings import Settings, load_settings
from k2ray.sim.audit import audit, seconds_sent
from k2ray.sim.process import Sim, running_sim
from k2ray.soak.evidence import Evidence
from k2ray.soak.gather import examine_tables, plan_of
from k2ray.soak.report import write_report
from k2ray.soak.samples import Sample, sample_of
from k2ray.soak.verdict import EXIT_STATUS, Compared, Plan, Run, Verdict, judge

SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT", "XRPUSDT", "BTCFDUSD")
CHANNEL_OF = {"trades": "trade", "quotes": "bookTicker"}
DAY_S = 86_400.0
CUT_AT, NOTICE_AT = 10 / 24, 18 / 24
"""When in its day the exchange cuts a connection without a word, and when it announces its end.

Both leave time to be answered within the same day, however short a compressed one is: a rotation takes real seconds.
"""

GAPS_CLOSE_S = 120.0
"""How long backfill may take at the end, before the exchange goes away: its grace time, and some rounds."""

ROTATE_EVERY_S = 3600.0
"""In a soak of less than a day: the shortest allowed, so that an hour has one rotation."""

console = Console()


@dataclass(frozen=True)
class Soak:
    """What to run.

    Attributes:
        hours: Of the schedule's time: 24 with `compress` 720 take two minutes.
        sample_s: Real seconds between samples.
    """

    hours: float = 1.0
    rate: float = 500.0
    data_dir: Path = Path("k2ray-soak")
    port: int | None = None
    transport: str = "websockets"
    compress: float = 1.0
    sample_s: float = 60.0
    quotes: bool = True
    seed: int = 1

    @property
    def seconds(self) -> float:
        """How long it really takes."""
        return self.hours * 3600 / self.compress

    @property
    def channels(self) -> tuple[str, ...]:
        """What is recorded."""
        return ("trades", "quotes") if self.quotes else ("trades",)


def soak(wish: Soak) -> int:
    """Run the system, judge it, write the report, and return the exit status: 0 passed, 1 failed, 2 not proven.

    Raises:
        K2rayError: A part did not start; the message says which.
    """
    with interruptible():
        make_empty(wish.data_dir)
        with running_sim(
            wish.data_dir,
            rate=wish.rate,
            seed=wish.seed,
            symbols=SYMBOLS,
            channels=",".join(CHANNEL_OF[channel] for channel in wish.channels),
            lifetime_s=DAY_S / wish.compress,
            # Pings are part of the compressed schedule, and messages of a second.
            messages_per_s=5 if wish.compress == 1 else 20,
        ) as sim:
            try:
                run, settings = _run(wish, sim)
            except Stopped:
                console.print("stopped before it began: nothing was proven")
                return EXIT_STATUS["not proven"]
        assert sim.truth is not None
        run = _with_proof(run, settings, sim.truth)
    return show(
        f"soak of {wish.hours:g} h" + (f" / {wish.compress:g}" if wish.compress != 1 else ""), run, wish.data_dir
    )


def show(title: str, run: Run, folder: Path) -> int:
    """Judge, print, write the report into `folder`, and return the exit status."""
    verdict = judge(run)
    as_data, page = write_report(folder, title, run, verdict)
    console.print(grid_of(title, verdict))
    colour = {"passed": "green", "failed": "red"}.get(verdict.outcome, "yellow")
    console.print(f"[bold {colour}]{verdict.outcome}[/]   {page}   {as_data}", highlight=False, soft_wrap=True)
    return EXIT_STATUS[verdict.outcome]


def grid_of(title: str, verdict: Verdict) -> Grid:
    """Return the checks as a table for a terminal."""
    grid = Grid(title=title, title_justify="left")
    for column in ("what", "wanted", "found", "outcome"):
        grid.add_column(column)
    for check in verdict.checks:
        grid.add_row(check.name, check.wanted, check.found, check.outcome)
    return grid


def config_of(wish: Soak, sim: Sim, port: int) -> dict[str, Any]:
    """Return the content of the run's k2ray.yaml."""
    config = sim.config(symbols=SYMBOLS, channels=wish.channels, port=port, transport=wish.transport)
    if wish.compress != 1:
        config["feed"]["time_compression"] = wish.compress
    elif wish.hours < DAY_S / 3600:
        config["feed"]["rotate_every_s"] = ROTATE_EVERY_S
    return config


def _run(wish: Soak, sim: Sim) -> tuple[Run, Settings]:
    config = wish.data_dir / "k2ray.yaml"
    config.write_text(yaml.safe_dump(config_of(wish, sim, choose_port(wish.port)), sort_keys=False))
    settings = load_settings(config)
    watch = _Watch(wish, sim, settings)
    try:
        run_command("up", config, check=True)
        with contextlib.suppress(Stopped):
            watch.watch()
    finally:
        console.print("stopping: the exchange first, then feeds, Kafka, writers, actors, Ray", highlight=False)
        sim.stop()
        run_command("down", config, check=False)
    return watch.run(), settings


class _Watch:
    """Takes samples, lets the exchange's day go by, and ends early where it must."""

    def __init__(self, wish: Soak, sim: Sim, settings: Settings) -> None:
        self._wish = wish
        self._sim = sim
        self._settings = settings
        self._url = f"http://127.0.0.1:{settings.api.port}"
        self._samples: list[Sample] = []
        self._since_s = self._until_s = time.time()
        self._why = "interrupted"

    def watch(self) -> None:
        """Watch until the time is up, a process is too large, or a signal comes."""
        wish = self._wish
        self._since_s = self._until_s = time.time()
        begun = time.monotonic()
        incidents = _incidents(wish)
        next_sample = 0.0
        with httpx.Client(base_url=self._url, timeout=10) as client:
            while (passed := time.monotonic() - begun) < wish.seconds:
                self._until_s = self._since_s + passed
                if passed >= next_sample:
                    # A slow answer costs samples, which are then missing; it is not made up for by a burst of them.
                    next_sample += wish.sample_s * (1 + (passed - next_sample) // wish.sample_s)
                    self._sample(client)
                    if self._why != "interrupted":
                        return
                # Amid a rotation a notice changes nothing: the new connection is on its way already.
                while incidents and passed >= incidents[0][0] and not self._rotates():
                    self._let_happen(incidents.pop(0)[1])
                due = [wish.seconds, next_sample, *(max(at, passed + 0.2) for at, _ in incidents[:1])]
                time.sleep(max(0.0, min(min(due) - (time.monotonic() - begun), 1.0)))
            self._sample(client)
            self._until_s = self._since_s + wish.seconds
            self._why = ""
            self._await_backfill(client)

    def run(self) -> Run:
        """Return what was seen."""
        plan = plan_of(self._settings, self._samples, self._wish.sample_s)
        return Run(self._since_s, self._until_s, self._wish.seconds, plan, self._samples, aborted=self._why)

    def _sample(self, client: httpx.Client) -> None:
        try:
            status = client.get("/v1/status").raise_for_status().json()
            pings = self._sim.state()["counters"].get("pings_received", 0)
        except (httpx.HTTPError, ValueError) as error:
            console.print(f"no sample: {error}", highlight=False)
            return
        sample = sample_of(status, time.time(), pings)
        self._samples.append(sample)
        self._why = too_large(plan_of(self._settings, [sample]), sample) or self._why
        passed = time.time() - self._since_s
        actors = ", ".join(f"{a.name} {(a.rss_bytes or 0) / 1e6:.0f} MB" for a in sample.actors)
        console.print(f"{passed:7.0f} s  {actors}; {sample.gap_ids} ids missing", highlight=False)

    def _rotates(self) -> bool:
        enabled = self._settings.exchanges.enabled().values()
        wanted = sum(exchange.connections * exchange.redundancy for exchange in enabled)
        return len(self._sim.state()["connections"]) > wanted

    def _let_happen(self, incident: str) -> None:
        numbers = [int(number) for number in self._sim.state()["connections"]]
        console.print(f"the exchange: {incident}", highlight=False)
        if numbers and incident == "shutdown notice":
            self._sim.fault("server_shutdown", connection=max(numbers))
        elif numbers:
            self._sim.fault("close", connection=max(numbers))

    def _await_backfill(self, client: httpx.Client) -> None:
        """Let gaps close while the exchange can still be asked; one is known once its rows are committed."""
        quiet_s = 2 * self._settings.lake.commit.interval_s + 2
        now = time.monotonic()
        deadline, last_gap = now + GAPS_CLOSE_S, now
        while (now := time.monotonic()) < deadline and now - last_gap < quiet_s:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                if sample_of(client.get("/v1/status").raise_for_status().json(), 0.0).gaps:
                    last_gap = now
            time.sleep(1.0)


def _incidents(wish: Soak) -> list[tuple[float, str]]:
    """Return (seconds after the start, what happens) of all the exchange's days, in order."""
    day = DAY_S / wish.compress
    found = []
    start = 0.0
    while start < wish.seconds:
        # What an unannounced cut loses of quotes, nobody can fetch again.
        if not wish.quotes:
            found.append((start + CUT_AT * day, "24 h cut"))
        found.append((start + NOTICE_AT * day, "shutdown notice"))
        start += day
    return [one for one in found if one[0] < wish.seconds]


def too_large(plan: Plan, sample: Sample) -> str:
    """Return which process is above its role's hard limit; empty if none."""
    for actor in sample.actors:
        limit = plan.hard_bytes.get(actor.role)
        if limit is not None and (actor.rss_bytes or 0) > limit:
            return f"{actor.name} has {(actor.rss_bytes or 0) / 1e6:.0f} MB, the limit is {limit / 1e6:.0f} MB"
    return ""


def _with_proof(run: Run, settings: Settings, truth: Path) -> Run:
    """Add what the tables hold, alone and against the exchange's truth."""
    from k2ray.lake.catalog import load_table, open_catalog

    layout = DataDir(settings.data_dir)
    catalog = open_catalog(settings, layout)
    compared: list[Compared] = []
    for name in settings.exchanges.tables():
        table = load_table(catalog, settings, name)
        if table is None:
            raise K2rayError(f"there is no table {name}")
        found = audit(truth, table, CHANNEL_OF[name], round(run.since_s * 1e6))
        compared.append(Compared(name, found.sent, found.stored, found.lost, found.duplicated, found.invented))
    evidence: Sequence[Evidence] = examine_tables(settings, layout, run.since_s, run.until_s)
    return dataclasses.replace(run, evidence=evidence, compared=compared, sent=seconds_sent(truth))
