"""A block of free ports for one Ray head: its own services, its workers, and Serve's replicas."""

from __future__ import annotations

import random
import socket

from k2ray.errors import RayUnavailable

BLOCK = 400
FIRST_PORTS = (20_000, 29_600)
"""Above other clusters' workers (10002-19999), below the system's ports for outgoing connections (from 32768)."""

SERVICES = {
    "--port": 0,
    "--dashboard-port": 1,
    "--dashboard-agent-listen-port": 2,
    "--dashboard-agent-grpc-port": 3,
    "--runtime-env-agent-port": 4,
    "--metrics-export-port": 5,
    "--ray-client-server-port": 6,
    "--node-manager-port": 7,
    "--object-manager-port": 8,
    "--min-worker-port": 20,
    "--max-worker-port": 299,
}
"""Option of `ray start` -> offset in the block."""

HAPROXY_METRICS, HAPROXY_STATS = 10, 11
INGRESS_HTTP = (300, 349)
INGRESS_GRPC = (350, 399)


def find_free_block(chance: random.Random | None = None) -> int:
    """Return the first of a block of free ports of 127.0.0.1, outside the range of other clusters' workers."""
    chance = chance or random.SystemRandom()
    for _ in range(100):
        base = chance.randrange(*FIRST_PORTS, BLOCK)
        if all(_is_free(base + offset) for offset in (*range(12), *range(20, BLOCK, 20))):
            return base
    raise RayUnavailable(f"no block of {BLOCK} free ports between {FIRST_PORTS[0]} and {FIRST_PORTS[1]}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
