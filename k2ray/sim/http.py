"""Plain HTTP requests and answers, as `connection.py` reads and writes them and `rest.py` understands them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HttpRequest:
    """A plain HTTP request: `query` holds each parameter's last value, header names are lower case, `peer` asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    peer: str = ""


@dataclass(frozen=True)
class HttpResponse:
    """What to answer: JSON."""

    status: int
    body: bytes
    headers: list[tuple[str, str]] = field(default_factory=list)


HttpHandler = Callable[[HttpRequest], Awaitable[HttpResponse]]
