"""`/metrics`: one answer for the whole system, the same from every replica; its own alone while nobody knows more.

The supervisor collects (`actors/scrape.py`). A replica that is not asked for a while reports anyway, so that an answer
of another one still shows it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.responses import Response

from actors.exposition import merge_metrics
from k2ray.errors import TryAgain
from k2ray.metrics import SUPERVISOR_UP
from serve.work import Workers

REPORT_INTERVAL_S = 5.0

ANSWER_TIMEOUT_S = 5.0
"""Past a hung actor's second and the supervisor's own deadline; well within Prometheus' ten seconds."""

UNKNOWN = "api"
"""The name of a replica that no supervisor has given one."""

AskAll = Callable[[str], tuple[str, dict[str, str]]]
Report = Callable[[str], str]


class SystemMetrics:
    """This replica's part in the system's metrics.

    Args:
        ask_all: Takes this replica's text; returns the name under which it is shown and name -> text of everybody.
            Blocking, raises `TryAgain`.
        report: Takes this replica's text and returns its name. Blocking, raises `TryAgain`.
    """

    def __init__(self, ask_all: AskAll, report: Report) -> None:
        self._ask_all = ask_all
        self._report = report
        self._name = UNKNOWN
        self._workers = Workers("metrics", 2, 8)

    async def answer(self) -> str:
        """Return everybody's metrics as text, within a deadline."""
        self._show_supervisor(True)
        own = generate_latest().decode()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                self._name, texts = await self._workers.run(self._ask_all, own)
                return await self._workers.run(merge_metrics, texts)
        except (TryAgain, TimeoutError):
            self._show_supervisor(False)
            return merge_metrics({self._name: generate_latest().decode()})

    @contextlib.asynccontextmanager
    async def reporting(self) -> AsyncIterator[None]:
        """Report now and then until left."""
        task = asyncio.create_task(self._go_on_reporting())
        try:
            yield
        finally:
            task.cancel()
            self._workers.close()

    async def _go_on_reporting(self) -> None:
        while True:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    self._name = await self._workers.run(self._report, generate_latest().decode())
                self._show_supervisor(True)
            except (TryAgain, TimeoutError):
                self._show_supervisor(False)
            await asyncio.sleep(REPORT_INTERVAL_S)

    def _show_supervisor(self, answers: bool) -> None:
        # A labelled metric is only there where it is set; an unlabelled one would be 0 in every process.
        SUPERVISOR_UP.labels("api").set(answers)


def alone(text: str) -> tuple[str, dict[str, str]]:
    """Stand for a supervisor where there is none: the replica's own metrics are all there is."""
    return UNKNOWN, {UNKNOWN: text}


def metrics_routes(system: SystemMetrics) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["status"])

    @router.get("/metrics", summary="All replicas' and actors' metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(await system.answer(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return router
