"""Which snapshots somebody still pages through, and for how long. Pure: time is an argument.

A page with a next cursor takes a lease on its snapshot and every later page renews it; upkeep expires no snapshot with
a live lease. Three hold them, each in a `Leases` of its own: the replica that answered, the supervisor (those of all
replicas), upkeep (what it last heard). What travels between them is durations: clocks of two machines have nothing in
common.

Why none is lost on the way, although nobody waits for it: a first lease is of a snapshot that was just the newest, so
it stays as one of the newest 100 for minutes anyway; a later one only prolongs what is known already, and each is kept
for `margin_s` longer than the cursor was promised. Within that margin a replica tells the supervisor several times
(every `resend_s`), and a supervisor that was restarted (2 s) has heard of all after `heard_all_s`.

Next in the flow: `serve/leases.py` tells the supervisor, `actors/leases.py` asks it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from k2ray import metrics
from k2ray.clock import Clock
from k2ray.errors import BadInput
from k2ray.logs import get_logger
from k2ray.model import WIRE_SCHEMAS

MOST = 100
"""Leased snapshots of a table: each costs every commit about a KB of metadata, so this many at most double it."""

SOON_S = 1.0
"""A new lease is told to the supervisor after this long, with all others of that time."""

log = get_logger(__name__)


def resend_s(lease_s: float) -> float:
    """Return how often a replica tells all of its leases again."""
    return min(10.0, lease_s / 4)


def margin_s(lease_s: float) -> float:
    """Return how much longer than promised a lease is kept, so that its renewal may come late."""
    return min(30.0, lease_s)


def heard_all_s(lease_s: float) -> float:
    """Return after how long a new supervisor has heard of every lease: two rounds, and the wait for an answer."""
    return 2 * resend_s(lease_s) + 3.0


class Leases:
    """Leases of snapshots, by table. Safe to use from several threads.

    Args:
        clock: Time.
        most: Snapshots of a table; beyond, the lease that would end first is given up.
    """

    def __init__(self, clock: Clock, most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._lock = threading.Lock()
        self._ends: dict[str, dict[int, float]] = {}

    def take(self, table: str, snapshot_id: int, for_s: float) -> bool:
        """Lease a snapshot, or renew its lease; one that is to last longer is left as it is.

        Args:
            table: Its table.
            snapshot_id: Which.
            for_s: How long from now.

        Returns:
            Whether it had no live lease before.

        Raises:
            BadInput: There is no such table.
        """
        if table not in WIRE_SCHEMAS:
            raise BadInput(f"there is no table {table!r} to lease a snapshot of")
        now_s = self._clock.monotonic_s()
        with self._lock:
            ends = self._ends[table] = self._current(table, now_s)
            is_new = snapshot_id not in ends
            ends[snapshot_id] = max(now_s + for_s, ends.get(snapshot_id, now_s))
            if len(ends) > self._most:
                first = min(ends, key=ends.__getitem__)
                left_s = ends.pop(first) - now_s
                metrics.LEASES_DROPPED.labels(table).inc()
                log.warning("lease dropped", table=table, snapshot_id=first, left_s=left_s, most=self._most)
        return is_new

    def take_all(self, table: str, told: Mapping[int, float]) -> None:
        """Take several leases: snapshot id -> seconds from now."""
        for snapshot_id, for_s in told.items():
            self.take(table, snapshot_id, for_s)

    def live(self, table: str) -> dict[int, float]:
        """Return snapshot id -> seconds left, of the table's leases that have not ended."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            return {one: end_s - now_s for one, end_s in self._current(table, now_s).items()}

    def all_live(self) -> dict[str, dict[int, float]]:
        """Return table -> snapshot id -> seconds left, of the tables that have any."""
        found = {table: self.live(table) for table in WIRE_SCHEMAS}
        return {table: live for table, live in found.items() if live}

    def _current(self, table: str, now_s: float) -> dict[int, float]:
        """Return the ends of those that have not ended."""
        return {one: end_s for one, end_s in self._ends.get(table, {}).items() if end_s > now_s}


class Promises:
    """A replica's own leases, and when to tell them. `take` from any thread, the others from one.

    The caller asks `due()` every `pause_s`, tells what it returns, and says by `told()` whether that was heard.

    Args:
        lease_s: How long a cursor lives after its page.
        clock: Time.
    """

    def __init__(self, lease_s: float, clock: Clock) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._leases = Leases(clock)
        self._has_news = False
        self._told_s = clock.monotonic_s()

    @property
    def pause_s(self) -> float:
        """How long to wait before it is asked again whether anything is due."""
        return min(SOON_S, resend_s(self._lease_s))

    @property
    def has_news(self) -> bool:
        """Whether there is a lease that was never told, or whose telling failed."""
        return self._has_news

    def take(self, table: str, snapshot_id: int) -> None:
        """Lease a snapshot for another `lease_s`; returns at once."""
        if self._leases.take(table, snapshot_id, self._lease_s + margin_s(self._lease_s)):
            self._has_news = True

    def due(self) -> dict[str, dict[int, float]]:
        """Return what is to be told now, table -> snapshot id -> seconds left; empty if there is nothing."""
        if not self._has_news and self._clock.monotonic_s() - self._told_s < resend_s(self._lease_s):
            return {}
        self._has_news = False  # before they are read: one that comes meanwhile is told twice rather than late
        return self._leases.all_live()

    def told(self, heard: bool) -> None:
        """Note whether the supervisor took what was due."""
        if heard:
            self._told_s = self._clock.monotonic_s()
        else:
            self._has_news = True
