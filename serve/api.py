"""The FastAPI app, which any ASGI server can run; knows nothing of Ray.

Next in the flow: `market.py` hands a validated question (`k2ray/query/request.py`) to the engine.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import FastAPI

from k2ray.lake.catalog import open_catalog
from k2ray.layout import DataDir
from k2ray.query.engine import Lease, QueryEngine
from k2ray.settings import Settings
from serve import problems
from serve.completeness import completeness_routes
from serve.leases import CursorLeases, TellLeases, nobody
from serve.market import market_routes
from serve.meter import Meter
from serve.metrics import UNKNOWN, SystemMetrics, alone, metrics_routes
from serve.status import SystemStatus, status_routes
from serve.work import Workers

QUERY_THREADS = 4  # DuckDB's own threads do the work; these wait for it and write the answers
QUERIES_WAITING = 64


class Engine:
    """The query engine, opened at the first question: a catalog that is away must not keep a replica from starting."""

    def __init__(self, settings: Settings, lease: Lease) -> None:
        self._settings = settings
        self._lease = lease
        self._layout = DataDir(settings.data_dir)
        self._lock = threading.Lock()
        self._opened: QueryEngine | None = None

    def get(self) -> QueryEngine:
        """Return the engine.

        Raises:
            TryAgain: The catalog does not answer.
        """
        with self._lock:
            if self._opened is None:
                catalog = open_catalog(self._settings, self._layout)
                self._opened = QueryEngine(catalog, self._settings, self._layout, lease=self._lease)
            return self._opened

    def check_tables(self) -> None:
        """Return if every table that is recorded can be read.

        Raises:
            TryAgain: Catalog or storage do not answer, or a table does not exist yet.
        """
        self.get().check(self._settings.exchanges.tables())

    def close(self) -> None:
        """Let go of the engine's memory."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None


def build_api(
    settings: Settings, status: SystemStatus, metrics: SystemMetrics | None = None, tell_leases: TellLeases = nobody
) -> FastAPI:
    """Return the FastAPI app; knows nothing of Serve.

    Args:
        settings: Catalog, warehouse and limits.
        status: Returns the supervisor's view of the system; blocking.
        metrics: What `/metrics` shows; None shows this process alone.
        tell_leases: Tells the supervisor which snapshots this replica's cursors need.
    """
    leases = CursorLeases(settings.api.cursor_lease_s, tell_leases)
    engine = Engine(settings, leases.take)
    shown = metrics or SystemMetrics(alone, lambda _text: UNKNOWN)
    queries = Workers("query", QUERY_THREADS, QUERIES_WAITING)
    checks = Workers("check", 2, QUERIES_WAITING)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with shown.reporting(), leases.telling():
            yield
        for workers in (queries, checks):
            workers.close()
        engine.close()

    api = FastAPI(
        title="k2ray",
        version=version("k2ray"),
        description="Market data, every trade exactly once. Decimals are strings, times are UTC with microseconds.",
        lifespan=lifespan,
    )
    problems.install(api)
    api.include_router(market_routes(engine.get, queries))
    api.include_router(completeness_routes(engine.get, status, queries))
    api.include_router(status_routes(engine.check_tables, status, checks))
    api.include_router(metrics_routes(shown))
    api.add_middleware(Meter)
    return api
