"""Free ports for what tests start."""

from __future__ import annotations

import socket


def find_free_port() -> int:
    """Return a free TCP port of 127.0.0.1, outside the range that Ray's workers take."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if not 10002 <= port <= 19999:
            return port
