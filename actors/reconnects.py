"""Which feeds connected anew since the last look at what the supervisor says of all actors. Pure.

A feed's connection is told from the next one by the feed's generation and by how often it reconnected; a rotation is
none, since it misses nothing. Only connections that deliver count: what comes after that comes by them.

Next in the flow: `backfill.py` asks the exchange what was missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.names import ActorName


class Reconnects:
    """Follows the feeds of one exchange.

    Args:
        exchange: Whose feeds.
    """

    def __init__(self, exchange: str) -> None:
        self._exchange = exchange
        self._known: dict[str, tuple[int, int]] = {}

    def note(self, status: Mapping[str, Any]) -> set[int]:
        """Return the indices of the connections that are new since the last call; at the first, of all.

        Args:
            status: As the supervisor gives it (`report.describe`).
        """
        found = set()
        for actor in status.get("actors", ()):
            if actor["role"] != "feed" or not actor["ready"]:
                continue
            name = ActorName.parse(actor["name"])
            exchange, index, *_ = name.owns
            connection = (name.generation, actor["detail"].get("reconnects", 0))
            if exchange == self._exchange and self._known.get(name.logical) != connection:
                self._known[name.logical] = connection
                found.add(int(index))
        return found
