"""One scrape for the whole system: the supervisor asks every actor for its metrics, with a deadline.

A hung or busy actor costs its own newest numbers and nothing else. The API's replicas bring theirs along when they ask
(`system_metrics`) and every few seconds (`report_replica`). What is collected also goes to Ray's own metrics.

Next in the flow: `actors/collected.py`, `actors/exposition.py`; `serve/metrics.py` is who asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import generate_latest

from actors import edge
from actors.collected import Collected
from actors.names import SUPERVISOR, ActorName
from actors.ray_mirror import RayMirror
from k2ray import metrics
from k2ray.logs import get_logger

ACTOR_TIMEOUT_S = 1.0

MIRROR_INTERVAL_S = 10.0
"""Ray's agent hands metrics out at the same pace; more often would only cost."""

_log = get_logger(__name__)


def system_metrics(namespace: str, replica: str, text: str, timeout_s: float) -> tuple[str, dict[str, str]]:
    """Ask the supervisor for the metrics of all actors and replicas.

    Args:
        namespace: `DataDir.namespace`.
        replica: Who asks; any name that no other replica has.
        text: Its own metrics.
        timeout_s: Longest wait.

    Returns:
        The name under which the replica is shown; name -> Prometheus text (`actors/exposition.py` joins them).

    Raises:
        SupervisorUnavailable: It does not live or does not answer in time.
    """
    handle = edge.find(SUPERVISOR, namespace)
    found: tuple[str, dict[str, str]] = edge.ask(handle, "metrics", replica, text, timeout_s=timeout_s)
    return found


def report_replica(namespace: str, replica: str, text: str, timeout_s: float) -> str:
    """Tell the supervisor a replica's metrics, and return the name under which they are shown.

    Raises:
        SupervisorUnavailable: It does not live or does not answer in time.
    """
    shown: str = edge.ask(edge.find(SUPERVISOR, namespace), "note_replica", replica, text, timeout_s=timeout_s)
    return shown


class Scrape:
    """The supervisor's side.

    Args:
        handles: The living actors; the supervisor's own mapping, which changes all the time.
    """

    def __init__(self, handles: Mapping[ActorName, Any]) -> None:
        self._handles = handles
        self._collected = Collected()

    async def collect(self) -> dict[str, str]:
        """Return name -> metrics as text, of all that answer in time or did a moment ago, and the supervisor's own."""
        names = list(self._handles)
        answers = await asyncio.gather(*(self._ask(name) for name in names))
        now_s = time.monotonic()
        for name, text in zip(names, answers, strict=True):
            if text is not None:
                self._collected.note(name, text, now_s)
        self._collected.keep(self._handles)
        metrics.METRICS_AGE_SECONDS.clear()
        for shown, age_s in self._collected.ages_s(now_s).items():
            metrics.METRICS_AGE_SECONDS.labels(shown).set(age_s)
        return {**self._collected.texts(now_s), SUPERVISOR: generate_latest().decode()}

    def note_replica(self, replica: str, text: str) -> str:
        """Take a replica's metrics and return the name under which they are shown."""
        return self._collected.note_replica(replica, text, time.monotonic())

    def replicas(self) -> list[dict[str, Any]]:
        """Return the API's replicas as values (`Collected.replicas`)."""
        return self._collected.replicas(time.monotonic())

    async def mirror(self) -> None:
        """Show everything in Ray's own metrics too, for ever."""
        mirror = RayMirror()
        while True:
            await asyncio.sleep(MIRROR_INTERVAL_S)
            texts = await self.collect()
            try:
                await asyncio.to_thread(mirror.show, texts)
            except edge.RAY_ERRORS as error:
                _log.warning("not in Ray's metrics", reason=edge.first_line(error))

    async def _ask(self, name: ActorName) -> str | None:
        try:
            async with asyncio.timeout(ACTOR_TIMEOUT_S):
                text: str = await self._handles[name].metrics.remote()
        except (*edge.RAY_ERRORS, KeyError, OSError, TimeoutError):
            return None
        return text
