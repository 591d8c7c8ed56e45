"""What routes about tables have in common: how a question is answered, and how a route is documented."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from k2ray.metrics import QUERY_FILES, QUERY_ROWS
from k2ray.query.engine import Answer
from serve.formats import ROWS_PER_CHUNK, choose_format, headers
from serve.parameters import openapi_parameters, read_query
from serve.problems import MEDIA_TYPE, PROBLEM_SCHEMA
from serve.work import Workers

_ERRORS = {
    400: "The question is wrong: field says where, allowed what would be right.",
    404: "Nothing of this exchange or symbol is in the table.",
    410: "The cursor's snapshot has expired: ask again without it.",
    422: "The question is too large for the time or memory of one query.",
    503: "A part is away, or the replica is full: ask again after Retry-After.",
}


async def answer(
    workers: Workers,
    request: Request,
    known: Sequence[str],
    ask: Callable[[dict[str, str]], Callable[[], Answer]],
) -> Response:
    """Answer a question in the form that its client wants, streamed if the answer is large.

    Args:
        workers: Where the question is answered.
        request: Asks it.
        known: Its parameters, besides `format`.
        ask: Parameters -> the question, validated; calling that blocks.

    Raises:
        BadRequest: A parameter is unknown or wrong; tell the client.
    """
    parameters = read_query(request, (*known, "format"))
    form = choose_format(parameters.pop("format", None), request.headers.get("accept"))
    question = ask(parameters)

    def work() -> tuple[Answer, bytes | Iterator[bytes]]:
        found = question()
        chunks = form.encode(found)
        return found, b"".join(chunks) if found.rows.num_rows <= ROWS_PER_CHUNK else chunks

    found, content = await workers.run(work)
    QUERY_ROWS.inc(found.rows.num_rows)
    QUERY_FILES.inc(found.files)
    if isinstance(content, bytes):
        return Response(content, headers=headers(found), media_type=form.media_type)
    return StreamingResponse(workers.stream(content), headers=headers(found), media_type=form.media_type)


def documented(
    name: str, parameters: Sequence[str], meaning: str, content: Mapping[str, Any], errors: Sequence[int]
) -> dict[str, Any]:
    """Return the keywords that document a route.

    Args:
        name: Of the operation.
        parameters: What may be asked.
        meaning: Of a 200.
        content: Media type -> its example or schema.
        errors: Other statuses, besides 400 and 503.
    """
    problem = {"content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}}
    refusals = {status: {"description": _ERRORS[status], **problem} for status in sorted((400, *errors, 503))}
    return {
        "response_class": Response,
        "operation_id": name,
        "openapi_extra": openapi_parameters(parameters),
        "responses": {200: {"description": meaning, "content": dict(content)}, **refusals},
    }
