"""A load of HTTP questions beside a test: N clients in a process of their own, every failure and every latency kept.

A failure is what a client would call one: no answer, a status other than 200, or an answer that is not what was asked
for. Nothing is tried again. Half of the clients keep their connections, half open one for each request, since the two
meet a server that goes away in different ways.

`with load(url, ["/v1/trades?limit=10"]) as running: ...; report = running.stop()`
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import httpx

TIMEOUT_S = 60.0
"""Longer than any pause that is a pass: a slow answer is a latency, not a failure."""


@dataclass(frozen=True)
class Failure:
    """One request that a client did not get its answer to.

    Attributes:
        at_s: Unix time of its start.
        path: What was asked.
        reason: Status and body's start, or the exception.
    """

    at_s: float
    path: str
    reason: str


@dataclass
class Report:
    """What a load saw.

    Attributes:
        requests: All, failed ones included.
        failures: Each of them.
        latencies_ms: Of the answered ones, sorted.
        seconds: How long it ran.
    """

    requests: int = 0
    failures: list[Failure] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def quantile_ms(self, share: float) -> float:
        """Return a latency's quantile; 0 without answers."""
        if not self.latencies_ms:
            return 0.0
        return self.latencies_ms[min(len(self.latencies_ms) - 1, int(share * len(self.latencies_ms)))]

    def __str__(self) -> str:
        return (
            f"{self.requests} requests in {self.seconds:.1f} s, {len(self.failures)} failed; "
            f"p50 {self.quantile_ms(0.5):.0f}, p99 {self.quantile_ms(0.99):.0f}, max {self.quantile_ms(1.0):.0f} ms"
        )


class RunningLoad:
    """A load that runs until it is stopped."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._report: Report | None = None

    def stop(self) -> Report:
        """End it after the answers that are under way, and return what it saw; again the same report."""
        if self._report is None:
            self._process.send_signal(signal.SIGTERM)
            out, err = self._process.communicate(timeout=TIMEOUT_S + 30)
            assert self._process.returncode == 0, err
            told = json.loads(out)
            self._report = Report(**{**told, "failures": [Failure(**failure) for failure in told["failures"]]})
        return self._report


@contextlib.contextmanager
def load(url: str, paths: Sequence[str], *, clients: int = 8, pause_s: float = 0.05) -> Iterator[RunningLoad]:
    """Ask `paths` in turn, by `clients` at once, until stopped.

    Args:
        url: Of the API, without a path.
        paths: With their queries.
        clients: At once.
        pause_s: Of a client between an answer and its next question.
    """
    command = [sys.executable, "-m", "tests.support.load", url, *paths]
    command += ["--clients", str(clients), "--pause", str(pause_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", "the load generator did not start"
        yield RunningLoad(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


async def ask_until(
    stop: asyncio.Event, url: str, paths: Sequence[str], *, clients: int, pause_s: float, report: Report
) -> None:
    """Run the clients until `stop`; fills `report`."""
    started_s = time.monotonic()
    await asyncio.gather(*(_client(number, stop, url, paths, pause_s, report) for number in range(clients)))
    report.seconds = time.monotonic() - started_s
    report.latencies_ms.sort()


async def _client(
    number: int, stop: asyncio.Event, url: str, paths: Sequence[str], pause_s: float, report: Report
) -> None:
    keeps = number % 2 == 0
    limits = httpx.Limits(max_keepalive_connections=1 if keeps else 0)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:
        for path in islice(cycle(paths), number, None):
            if stop.is_set():
                return
            await _ask(client, path, report)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause_s)


async def _ask(client: httpx.AsyncClient, path: str, report: Report) -> None:
    at_s, started_s = time.time(), time.monotonic()
    reason = ""
    try:
        answer = await client.get(path)
        if answer.status_code != httpx.codes.OK:
            reason = f"{answer.status_code} {answer.text[:200]}"
        elif answer.headers.get("content-type", "").startswith("application/json"):
            answer.json()
    except (httpx.HTTPError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
    report.requests += 1
    if reason:
        report.failures.append(Failure(at_s, path, reason))
    else:
        report.latencies_ms.append((time.monotonic() - started_s) * 1_000)


async def _main(url: str, paths: Sequence[str], clients: int, pause_s: float) -> Report:
    stop, report = asyncio.Event(), Report()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)  # noqa: T201  the parent waits for it
    await ask_until(stop, url, paths, clients=clients, pause_s=pause_s, report=report)
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.05)
    chosen = parser.parse_args()
    seen = asyncio.run(_main(chosen.url, chosen.paths, chosen.clients, chosen.pause))
    told = {**vars(seen), "failures": [vars(failure) for failure in seen.failures]}
    print(json.dumps(told))  # noqa: T201  the parent reads it
