"""What the simulator costs: CPU seconds per million frames, with clients that only read.

    python benchmarks/sim.py [--quick]

The clients are plain TLS sockets in a process of their own that throw away what they read, so that the simulator's own
limit shows and not a WebSocket library's. A rate above what the machine makes is given up and counted; a reader that is
dropped as too slow ends the measurement with an error.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.report import report
from tests.support.eventually import eventually
from tests.support.sim import Sim, start_sim

SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT")


def read_all(port: int, ca_file: str, paths: list[str], done: Any, read: Any) -> None:
    """Read from all connections in turn until told to stop."""
    context = ssl.create_default_context(cafile=ca_file)
    secures = []
    for path in paths:
        secure = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
        secure.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        secure.setblocking(False)
        secures.append(secure)
    buffer = bytearray(1 << 18)
    while not done.is_set():
        idle = True
        for secure in secures:
            try:
                taken = secure.recv_into(buffer)
                read.value += taken
                idle = idle and not taken
            except ssl.SSLWantReadError:
                continue
        if idle:
            time.sleep(0.001)


def sent(sim: Sim) -> int:
    return sum(sum(one["frames_sent"].values()) for one in sim.state()["connections"].values())


def measure(rate: int, connections: int, seconds: float, truth: bool) -> dict[str, Any]:
    paths = []
    for number in range(connections):
        mine = [s.lower() for n, s in enumerate(SYMBOLS) if n % connections == number]
        paths.append("/stream?streams=" + "/".join(f"{symbol}@trade" for symbol in mine))
    spawning = multiprocessing.get_context("spawn")
    done, read = spawning.Event(), spawning.Value("q", 0)
    with tempfile.TemporaryDirectory() as folder:
        with start_sim(Path(folder), rate=rate, symbols=SYMBOLS, truth=truth, arguments=["--channels", "trade"]) as sim:
            reader = spawning.Process(
                target=read_all, args=(sim.port, str(sim.ca_file), paths, done, read), daemon=True
            )
            reader.start()
            eventually(lambda: len(sim.state()["connections"]) == connections, "all readers are connected")
            time.sleep(1)
            process = psutil.Process(sim.process.pid)
            frames, cpu, at, size = sent(sim), process.cpu_times(), time.monotonic(), read.value
            behind = sim.state()["forgiven_trades"]
            time.sleep(seconds)
            assert len(sim.state()["connections"]) == connections, "a reader was dropped: it is too slow for this rate"
            frames, size, after = sent(sim) - frames, read.value - size, process.cpu_times()
            took = time.monotonic() - at
            behind = sim.state()["forgiven_trades"] - behind
            used = after.user + after.system - cpu.user - cpu.system
            rss = process.memory_info().rss
            done.set()
            reader.join()
            stopping = time.monotonic()
            trades = sim.state()["trades"]
        stopped = time.monotonic() - stopping
    return {
        "rate": rate,
        "connections": connections,
        "frames_per_s": round(frames / took),
        "given_up_per_s": round(behind / took),
        "bytes_per_frame": round(size / max(frames, 1)),
        "cpu_s_per_million": round(used / frames * 1e6, 3),
        "cores_busy": round(used / took, 2),
        "rss_mb": round(rss / 1e6),
        "truth_rows_per_s": round(trades / stopped) if truth else 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    seconds = 3.0 if parser.parse_args().quick else 10.0
    cases = [(1_000, 1, True), (100_000, 1, True), (300_000, 1, True), (300_000, 4, True), (500_000, 4, False)]
    rows = [measure(rate, connections, seconds, truth) for rate, connections, truth in cases]
    notes = f"{seconds:g} s each, combined @trade frames of {len(SYMBOLS)} symbols over TLS; the reader is not counted"
    report("sim", rows, notes)


if __name__ == "__main__":
    main()
