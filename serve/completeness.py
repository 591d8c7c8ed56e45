"""Is everything there? `/v1/completeness` answers by ids, and `/v1/gaps` what became of gaps.

The ledger of the newest snapshot says what is stored and missing; the backfill, through the supervisor, what is on its
way and which id the exchange named last. Without a supervisor the answer is the ledger's alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from k2ray.errors import TryAgain
from k2ray.query.completeness import PARAMETERS, CompletenessRequest, known_of, parse_completeness, to_json
from k2ray.query.engine import Answer, QueryEngine
from k2ray.query.gaps import GAP_PARAMETERS, parse_gaps
from k2ray.query.proof import Known
from serve.answers import answer, documented
from serve.formats import FORMATS
from serve.parameters import read_query
from serve.status import SystemStatus
from serve.work import Workers

JSON = FORMATS["json"].media_type

_EXAMPLE = {
    "data": [
        {
            "exchange": "binance",
            "symbol": "BTCUSDT",
            "channel": "trades",
            "sequence_space": "",
            "first_id": 3601210987,
            "last_id": 3602498351,
            "proof": "ids",
            "complete": False,
            "proven_to": {"id": 3602000000, "time": "2026-03-01T09:12:44.120381Z"},
            "newest": {"id": 3602498351, "asked_at": "2026-03-01T09:30:01.004211Z"},
            "missing_ids": 17,
            "missing": [
                {
                    "first_id": 3602000001,
                    "last_id": 3602000017,
                    "ids": 17,
                    "state": "filling",
                    "since": "2026-03-01T09:12:44.120381Z",
                    "until": "2026-03-01T09:12:46.870112Z",
                }
            ],
            "reasons": ["17 ids are being fetched or committed"],
        }
    ],
    "snapshot": "4861203742364821347",
}
_GAP = {
    "exchange": "binance",
    "symbol": "BTCUSDT",
    "table": "trades",
    "sequence_space": "",
    "first_id": 3602000001,
    "last_id": 3602000017,
    "missing": 17,
    "state": "filled",
    "opened_at": "2026-03-01T09:12:48.112000Z",
    "closed_at": "2026-03-01T09:13:06.530000Z",
    "reason": "",
    "snapshot_id": "4861203742364821347",
}
_GAPS_EXAMPLE = {"data": [_GAP], "snapshot": _EXAMPLE["snapshot"]}


def completeness_routes(engine: Callable[[], QueryEngine], system_status: SystemStatus, workers: Workers) -> APIRouter:
    """Return the routes.

    Args:
        engine: Returns the engine, opened; may raise `TryAgain`. Called in a worker's thread.
        system_status: Returns the supervisor's view, else raises `TryAgain`; blocking.
        workers: Where blocking work goes.
    """
    router = APIRouter(prefix="/v1", tags=["completeness"])

    @router.get(
        "/completeness",
        summary="First and last id, what is missing, and up to where nothing is",
        **documented("completeness", PARAMETERS, "An answer.", {JSON: {"example": _EXAMPLE}}, (404,)),
    )
    async def completeness(request: Request) -> Response:
        asked = parse_completeness(read_query(request, PARAMETERS))
        body = await workers.run(_answer, engine, system_status, asked)
        return Response(msgspec.json.encode(body), media_type=JSON)

    @router.get(
        "/gaps",
        summary="What was found missing, when, and what became of it; the newest first",
        **documented("gaps", (*GAP_PARAMETERS, "format"), "An answer.", {JSON: {"example": _GAPS_EXAMPLE}}, (404,)),
    )
    async def gaps(request: Request) -> Response:
        return await answer(workers, request, GAP_PARAMETERS, lambda given: _gaps(engine, given))

    return router


def _gaps(engine: Callable[[], QueryEngine], given: Mapping[str, str]) -> Callable[[], Answer]:
    asked = parse_gaps(given)
    return lambda: engine().gaps(asked)


def _answer(
    engine: Callable[[], QueryEngine], system_status: SystemStatus, asked: CompletenessRequest
) -> dict[str, Any]:
    known: dict[tuple[str, str, str], Known] = {}
    # Asked before the ledger is read: what the exchange named then may only be behind what is stored, never ahead.
    with contextlib.suppress(TryAgain):
        known = known_of(system_status())
    verdicts, snapshot_id = engine().completeness.verdicts(asked, known)
    channel = asked.channel.name
    return {
        "data": [
            to_json(
                verdict, channel, known.get((verdict.numbering.exchange, channel, verdict.numbering.symbol), Known())
            )
            for verdict in verdicts
        ],
        "snapshot": None if snapshot_id is None else str(snapshot_id),
    }
