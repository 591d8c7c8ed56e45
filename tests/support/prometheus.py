"""A real Prometheus and its promtool for tests: those on PATH, else Debian's package, unpacked without root.

`apt-get download` needs no root where apt has lists; as root, on a fresh machine, the lists are fetched first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

FETCH_TIMEOUT_S = 180
READY_TIMEOUT_S = 30.0
PACKAGE = "prometheus"


class LackingPrometheus(Exception):
    """This machine has no Prometheus and cannot get one; the message says what was tried."""


@dataclass(frozen=True)
class Programs:
    """Where the programs are."""

    prometheus: Path
    promtool: Path

    def check(self, *arguments: str, stdin: str | None = None, cwd: Path | None = None) -> str:
        """Run promtool and return what it printed.

        Raises:
            AssertionError: It found something wrong; says what.
        """
        command = [str(self.promtool), *arguments]
        done = subprocess.run(command, input=stdin, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
        printed = done.stdout + done.stderr
        assert done.returncode == 0, f"promtool {' '.join(arguments)}: {printed}"
        return printed


def find_programs() -> Programs:
    """Return the programs, fetched if need be.

    Raises:
        LackingPrometheus: There are none to be had.
    """
    found = [shutil.which(name) for name in ("prometheus", "promtool")]
    if found[0] and found[1]:
        return Programs(Path(found[0]), Path(found[1]))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "k2ray" / "tests" / "prometheus"
    programs = Programs(cache / "usr/bin/prometheus", cache / "usr/bin/promtool")
    if not programs.promtool.exists():
        _fetch(cache)
    return programs


def _fetch(cache: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise LackingPrometheus("neither prometheus and promtool nor apt-get and dpkg-deb are on PATH")
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as name:
        folder = Path(name)
        # apt's unprivileged downloader cannot enter a folder of ours, and warns; that is all it does.
        download = ["apt-get", "-qq", "download", PACKAGE]
        failed = _run(download, folder)
        if failed and os.getuid() == 0:
            failed = _run(["apt-get", "-qq", "update"], folder) or _run(download, folder)
        package = next(folder.glob("*.deb"), None)
        if failed or package is None:
            raise LackingPrometheus(f"prometheus is not installed and cannot be downloaded: {failed}")
        failed = _run(["dpkg-deb", "-x", str(package), str(folder / "unpacked")], folder)
        if failed:
            raise LackingPrometheus(failed)
        with contextlib.suppress(OSError):  # somebody else was faster
            (folder / "unpacked").rename(cache)


def _run(command: Sequence[str], folder: Path) -> str:
    """Run a command; returns why it failed, empty if it did not."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else f"{' '.join(command)}: {done.stderr.strip()[-500:]}"


class Prometheus:
    """A running Prometheus.

    Args:
        client: Asks it.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return an instant query's result: objects with `metric` and `value`.

        Raises:
            AssertionError: Prometheus does not understand it; says why.
        """
        answer = self._client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def alerts(self, state: str = "firing") -> list[dict[str, Any]]:
        """Return the alerts in a state: objects with `labels` and `annotations`."""
        answer = self._client.get("/api/v1/alerts").json()
        return [alert for alert in answer["data"]["alerts"] if alert["state"] == state]

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule with its `health` and `lastError`."""
        answer = self._client.get("/api/v1/rules").json()
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """Return the scraped targets with their `health` and `lastError`."""
        answer = self._client.get("/api/v1/targets").json()
        found: list[dict[str, Any]] = answer["data"]["activeTargets"]
        return found


@contextlib.contextmanager
def running_prometheus(
    programs: Programs,
    folder: Path,
    port: int,
    scrapes: Sequence[Mapping[str, Any]],
    *,
    rules: Path | None = None,
    interval: str = "500ms",
) -> Iterator[Prometheus]:
    """Run a Prometheus and stop it by its pid.

    Args:
        programs: What to run.
        folder: Gets its config, data and log.
        port: Free.
        scrapes: As in `scrape_configs`.
        rules: A file of rules.
        interval: Between scrapes, and between evaluations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(rules)] if rules else [],
        "scrape_configs": list(scrapes),
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    programs.check("check", "config", str(folder / "prometheus.yml"))
    command = [
        str(programs.prometheus),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_ready(url, process, folder / "log")
        with httpx.Client(base_url=url, timeout=20) as client:
            yield Prometheus(client)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/-/ready", timeout=2).status_code == httpx.codes.OK:
                return
        time.sleep(0.05)
    raise AssertionError(f"Prometheus is not ready:\n{log.read_text()[-2000:]}")
