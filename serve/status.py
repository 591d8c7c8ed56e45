"""How the system is: the supervisor's view, this replica's health and readiness.

`/health` says that the process answers; it touches nothing else. `/ready` says that questions can be answered and that
somebody keeps the writers alive: the catalog is readable, every table exists, the supervisor answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from actors.releases import running_code
from k2ray.errors import K2rayError, TryAgain
from serve.parameters import read_query
from serve.problems import describe
from serve.work import Workers

SystemStatus = Callable[[], dict[str, Any]]


def status_routes(
    check_tables: Callable[[], None],
    system_status: SystemStatus,
    workers: Workers,
) -> APIRouter:
    """Return the routes.

    Args:
        check_tables: Returns if every table can be read, else raises `TryAgain`; blocking.
        system_status: Returns the supervisor's view, else raises `TryAgain`; blocking.
        workers: Threads of their own, so that long queries do not make a replica look dead.
    """
    router = APIRouter(tags=["status"])

    @router.get("/v1/status", summary="All actors, lag, gaps and the degradation level", response_class=Response)
    async def status(request: Request) -> Response:
        read_query(request, ())
        return _json(await workers.run(system_status))

    @router.get("/health", summary="Whether this replica answers, and of which release it is", response_class=Response)
    async def health(request: Request) -> Response:
        read_query(request, ())
        return _json({"status": "ok", "release": running_code()})

    @router.get("/ready", summary="Whether questions can be answered", response_class=Response)
    async def ready(request: Request) -> Response:
        read_query(request, ())
        checks = await asyncio.gather(_check(workers, check_tables), _check(workers, system_status))
        parts = dict(zip(("tables", "supervisor"), checks, strict=True))
        is_ready = all(state == "ok" for state in checks)
        return _json({"ready": is_ready, **parts}, 200 if is_ready else 503)

    return router


async def _check(workers: Workers, call: Callable[[], object]) -> str:
    try:
        await workers.run(call)
    except TryAgain as error:
        return str(error)
    except K2rayError as error:
        describe(error)  # logs it
        return str(error)
    return "ok"


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")
