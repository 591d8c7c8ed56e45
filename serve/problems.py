"""Errors as problem+json (RFC 9457): what is wrong, with which field, and what is allowed; never an inside of ours."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from k2ray.errors import BadRequest, K2rayError, OperatorNeeded, QueryTooLarge, TryAgain
from k2ray.logs import get_logger

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1

PROBLEM_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "field": {"type": "string"},
        "allowed": {"type": "string"},
    },
}


def problem(
    status: int, detail: str, *, field: str | None = None, allowed: str | None = None, retry: bool = False
) -> Response:
    """Return a problem+json response.

    Args:
        status: HTTP status.
        detail: What is wrong, for a person.
        field: Name of the parameter, if one is to blame.
        allowed: What would be right.
        retry: Whether the same request may succeed later.
    """
    body: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    body["detail"] = detail
    if field is not None:
        body["field"] = field
    if allowed is not None:
        body["allowed"] = allowed
    headers = {"Retry-After": str(RETRY_AFTER_S)} if retry else None
    return Response(msgspec.json.encode(body), status_code=status, headers=headers, media_type=MEDIA_TYPE)


def describe(error: Exception) -> Response:
    """Return the response that an error of ours means."""
    if isinstance(error, BadRequest):
        detail, _, allowed = error.reason.partition("allowed: ")
        return problem(
            error.status, f"{error.field}: {detail.rstrip('; ')}", field=error.field, allowed=allowed or None
        )
    if isinstance(error, QueryTooLarge):
        return problem(
            422, f"the question {error}", allowed="a smaller question: less time, fewer symbols, a lower limit"
        )
    if isinstance(error, TryAgain):
        return problem(503, str(error), retry=True)
    get_logger("serve").error("request_failed", error=str(error), kind=type(error).__name__, exc_info=error)
    if isinstance(error, OperatorNeeded):
        return problem(500, str(error))
    return problem(500, "the request failed inside k2ray; the replica's log has the story")


def install(app: FastAPI) -> None:
    """Make every error of an app a problem+json answer, FastAPI's and Starlette's own included."""

    async def ours(_request: Request, error: Exception) -> Response:
        return describe(error)

    async def starlettes(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail, allowed = str(error.detail), None
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.url.path}"
            allowed = ", ".join(sorted(app.openapi()["paths"]))
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            detail, allowed = f"{request.method} is not allowed at {request.url.path}", "GET"
        answer = problem(error.status_code, detail, allowed=allowed)
        answer.headers.update(error.headers or {})
        return answer

    async def fastapis(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        field = str(first["loc"][-1])
        return problem(400, f"{field}: {first['msg']}", field=field)

    app.add_exception_handler(K2rayError, ours)
    app.add_exception_handler(HTTPException, starlettes)
    app.add_exception_handler(RequestValidationError, fastapis)
    app.add_exception_handler(Exception, ours)
