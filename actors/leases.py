"""Leases of snapshots on their way from the replicas that took them to upkeep, which must not expire them.

`LeaseDesk` is the supervisor's side: it holds the leases of all replicas, in memory only, since they are told again and
again. `tell_leases` is a replica's side, `LeasesHeard` upkeep's.

What a lease is, and the numbers: `k2ray/query/leases.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from actors import edge
from actors.names import SUPERVISOR
from k2ray import metrics
from k2ray.clock import Clock, SystemClock
from k2ray.errors import SupervisorUnavailable
from k2ray.logs import get_logger
from k2ray.model import WIRE_SCHEMAS
from k2ray.query.leases import Leases, heard_all_s, margin_s

ANSWER_TIMEOUT_S = 2.0
"""A supervisor that needs longer is away: it is told again soon, and upkeep waits with its expiry."""

_log = get_logger(__name__)


class LeaseDesk:
    """Holds the leases of all replicas. One lives in the supervisor.

    Args:
        clock: Time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._leases = Leases(clock)
        self._born_s = clock.monotonic_s()
        for table in WIRE_SCHEMAS:
            metrics.LEASES_DROPPED.labels(table)  # shown as 0, so that the first one is seen as an increase

    def note(self, told: Mapping[str, Mapping[int, float]]) -> None:
        """Take over a replica's leases: table -> snapshot id -> seconds left."""
        for table, leases in told.items():
            self._leases.take_all(table, leases)

    def of(self, table: str) -> tuple[float, dict[int, float]]:
        """Return for how many seconds this desk has listened, and snapshot id -> seconds left."""
        return self._clock.monotonic_s() - self._born_s, self._leases.live(table)

    def show(self) -> None:
        """Set the gauges."""
        for table in WIRE_SCHEMAS:
            metrics.LEASED_SNAPSHOTS.labels(table).set(len(self._leases.live(table)))


def tell_leases(namespace: str, leases: Mapping[str, Mapping[int, float]]) -> None:
    """Tell the supervisor a replica's leases; blocking.

    Args:
        namespace: `DataDir.namespace`.
        leases: Table -> snapshot id -> seconds left.

    Raises:
        SupervisorUnavailable: It does not live or does not answer in time; tell it again.
    """
    _ask(namespace, "note_leases", leases)


class LeasesHeard:
    """What upkeep knows of a table's leases; asks the supervisor at each call, from a thread.

    Args:
        namespace: `DataDir.namespace`.
        table: Whose.
        lease_s: `api.cursor_lease_s`.
        clock: Time.
    """

    def __init__(self, namespace: str, table: str, lease_s: float, clock: Clock | None = None) -> None:
        self._namespace = namespace
        self._table = table
        self._lease_s = lease_s
        self._clock = clock or SystemClock()
        self._heard = Leases(self._clock)
        self._complete_s = self._clock.monotonic_s()

    def __call__(self) -> Collection[int] | None:
        """Return the leased snapshots; None: not known now, so none may expire.

        Not known are they while the supervisor is away or so young that replicas may not have told it yet. Expiry
        waits for no longer than a lease, or a table would grow for as long as something is broken: what was heard stays
        leased until it ends, and whatever else there was has ended by then.
        """
        now_s = self._clock.monotonic_s()
        if (why := self._hear()) is None:
            self._complete_s = now_s
        elif now_s - self._complete_s < self._lease_s + margin_s(self._lease_s):
            _log.info("leases not known", table=self._table, reason=why)
            return None
        return self._heard.live(self._table).keys()

    def _hear(self) -> str | None:
        """Ask once; return why the answer may lack leases, None if it lacks none."""
        try:
            listened_s, leases = _ask(self._namespace, "leases", self._table)
        except SupervisorUnavailable as error:
            return str(error)
        self._heard.take_all(self._table, leases)
        if listened_s < heard_all_s(self._lease_s):
            return f"the supervisor has listened for {listened_s:.0f} s"
        return None


def _ask(namespace: str, method: str, argument: Any) -> Any:
    try:
        return edge.ask(edge.find(SUPERVISOR, namespace), method, argument, timeout_s=ANSWER_TIMEOUT_S)
    except (*edge.RAY_ERRORS, AttributeError) as error:  # AttributeError: one of a release that knows no leases
        raise SupervisorUnavailable(f"no answer to {method}(): {edge.first_line(error)}") from error
