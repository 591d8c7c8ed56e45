"""A simulated exchange as a subprocess: for the demo, for tests and for benchmarks.

```
with running_sim(folder, rate=500, symbols=("BTCUSDT",)) as sim:
    settings(ws_url=sim.ws_url, rest_url=sim.rest_url, ca_file=sim.ca_file)
    sim.fault("id_gap", count=3)
    rows = sim.truth_now()      # or, after the block, pq.read_table(sim.truth)
```
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from k2ray.errors import TryAgain

START_S = 30
# It expands the truth before it ends: about a second per million rows.
STOP_S = 300


@dataclass
class Sim:
    """A running simulator.

    Attributes:
        process: It; its standard error goes to `sim.log` in its folder.
        ws_url: For `exchanges.binance.ws_url`.
        rest_url: For `exchanges.binance.rest_url`.
        ca_file: For `tls.ca_file`.
        crl_file: For `tls.crl_file`: what that CA revoked.
        port: The one that all of it listens on.
        truth: The file that is complete once it has ended; None if none is written.
    """

    process: subprocess.Popen[str]
    ws_url: str
    rest_url: str
    ca_file: Path
    port: int
    truth: Path | None
    crl_file: Path

    def tls(self) -> ssl.SSLContext:
        """Return a context that trusts it, under the strict checks that newer Pythons have by default."""
        context = ssl.create_default_context(cafile=self.ca_file)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    def config(
        self, *, symbols: Sequence[str], channels: Sequence[str], port: int, transport: str, connections: int = 1
    ) -> dict[str, Any]:
        """Return the content of a k2ray.yaml beside the data that records this exchange; the API listens on `port`."""
        return {
            "data_dir": "./data",
            "tls": {"ca_file": str(self.ca_file.resolve())},
            "ray": {"dashboard": False},
            "exchanges": {
                "binance": {
                    "ws_url": self.ws_url,
                    "rest_url": self.rest_url,
                    "channels": list(channels),
                    "symbols": list(symbols),
                    "connections": connections,
                }
            },
            "feed": {"transport": transport},
            "api": {"port": port},
        }

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON answer to a GET, which must be 200."""
        with httpx.Client(verify=self.tls(), timeout=30) as client:
            return client.get(self.rest_url + path, params=params).raise_for_status().json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON answer to a POST, which must be 200."""
        with httpx.Client(verify=self.tls(), timeout=60) as client:
            return client.post(self.rest_url + path, json=body).raise_for_status().json()

    def state(self) -> Any:
        """Return the counters."""
        return self.get("/_sim/state")

    def fault(self, fault: str, **params: Any) -> Any:
        """Let something go wrong (`k2ray.sim.faults.FaultRequest` has the parameters)."""
        return self.post("/_sim/fault", {"fault": fault, **params})

    def truth_now(self) -> pa.Table:
        """Return the truth until now; the market goes on."""
        assert self.truth is not None
        now = self.truth.with_name(self.truth.stem + "-now.parquet")
        self.post("/_sim/truth", {"path": str(now)})
        return pq.read_table(now)

    def stop(self) -> int:
        """End it with SIGTERM, which finishes the truth, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()


@contextlib.contextmanager
def running_sim(
    folder: Path,
    *,
    rate: float = 200,
    seed: int = 1,
    symbols: Sequence[str] = ("BTCUSDT", "ETHUSDT", "BNBUSDT"),
    port: int = 0,
    truth: bool = True,
    replay: Path | None = None,
    arguments: Sequence[str] = (),
    **options: float | str | bool,
) -> Iterator[Sim]:
    """Run `k2ray sim` in `folder` until the block ends. It is in a session of its own: Ctrl-C does not reach it.

    Args:
        folder: Gets the CA, the truth (`truth.parquet`) and the log (`sim.log`).
        rate: Trades a second over all symbols.
        seed: What the market follows from.
        symbols: Upper case.
        port: 0 takes a free one; give the old one to come back after a stop.
        truth: Whether to write it.
        replay: Send this recording instead.
        arguments: More of `k2ray sim --help`.
        options: The same by name: `lifetime_s=60` is `--lifetime-s 60`; true is a flag.

    Raises:
        TryAgain: It did not start; the message holds the end of its log.
    """
    truth_file = folder / "truth.parquet" if truth and replay is None else None
    command = [sys.executable, "-m", "k2ray.cli.sim", "--port", str(port), "--ca-dir", str(folder / "ca")]
    if replay is not None:
        command += ["--replay", str(replay)]
    else:
        command += ["--rate", str(rate), "--seed", str(seed), "--symbols", ",".join(symbols)]
    if truth_file is not None:
        command += ["--truth", str(truth_file)]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        command += [flag] if value is True else [flag, str(value)]
    with (folder / "sim.log").open("a") as log:
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline() if ready else ""
    if not line:
        process.kill()
        process.wait()
        process.stdout.close()
        raise TryAgain(f"the simulated exchange did not start: {(folder / 'sim.log').read_text()[-2000:]}")
    address = json.loads(line)
    sim = Sim(
        process,
        address["ws_url"],
        address["rest_url"],
        Path(address["ca_file"]),
        address["port"],
        truth_file,
        Path(address["crl_file"]),
    )
    try:
        yield sim
    finally:
        sim.stop()
