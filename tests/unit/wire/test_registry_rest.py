"""What a remote registry's answers mean: an answer, "ask again", a refusal, or something for a person."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from k2ray.errors import BadInput, IncompatibleSchema, OperatorNeeded, RegistryUnavailable
from k2ray.settings import Tls, Wire
from k2ray.wire.avro_schema import SCHEMAS
from k2ray.wire.compatibility import canonical
from k2ray.wire.registry_rest import RestRegistry
from k2ray.wire.schemas import UnknownSchema
from tests.support.schemas import changed

SUBJECT = "market.crypto.trades.binance-value"


def registry(answer: Callable[[httpx.Request], httpx.Response], **wire: Any) -> RestRegistry:
    made = RestRegistry(Wire.model_validate({"registry_url": "http://registry/api", **wire}), Tls())
    made._client.close()
    auth, headers = made._client.auth, made._client.headers
    made._client = httpx.Client(transport=httpx.MockTransport(answer), auth=auth, headers=headers)
    return made


def always(status: int, body: Any) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(status, json=body) if body is not None else httpx.Response(status, text="<html>")


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, {"error_code": 50001, "message": "store"}, RegistryUnavailable),
        (503, None, RegistryUnavailable),
        (429, {"error_code": 429, "message": "slow"}, RegistryUnavailable),
        (200, None, RegistryUnavailable),
        (404, {"error_code": 40403, "message": "Schema not found"}, UnknownSchema),
        (404, None, OperatorNeeded),
        (401, {"error_code": 401, "message": "who"}, OperatorNeeded),
        (403, None, OperatorNeeded),
        (200, {"schema": "{}", "schemaType": "PROTOBUF"}, UnknownSchema),
    ],
)
def test_only_a_clear_answer_says_that_a_schema_does_not_exist(status: int, body: Any, error: type[Exception]) -> None:
    """A record whose schema is not known because the registry is away must never become a dead letter."""
    with pytest.raises(error):
        registry(always(status, body)).by_id(3)


def test_no_connection_is_ask_again() -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(RegistryUnavailable, match="does not answer"):
        registry(broken).by_id(3)


class Server:
    """A registry that keeps what it is told and remembers the questions."""

    def __init__(self, *kept: str, conflict: bool = False, level: str = "", read_only: bool = False) -> None:
        self.kept = list(kept)
        self.conflict = conflict
        self.asked: list[str] = []
        self.level = level
        self.read_only = read_only

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api")
        self.asked.append(f"{request.method} {path}")
        body = json.loads(request.content) if request.content else {}
        if self.read_only and request.method == "PUT":
            return httpx.Response(403, json={"error_code": 40301, "message": "read only"})
        if path.startswith("/config/") and request.method == "GET":
            if self.level == "unsaid":
                return httpx.Response(404, json={"title": "a rule was not found", "status": 404})
            if not self.level:
                return httpx.Response(404, json={"error_code": 40408, "message": "no compatibility of its own"})
            return httpx.Response(200, json={"compatibilityLevel": self.level})
        if path.startswith("/config/"):
            self.level = body["compatibility"]
            return httpx.Response(200, json={})
        if request.method == "POST" and path.endswith("/versions"):
            if self.conflict:
                return httpx.Response(409, json={"error_code": 409, "message": "incompatible"})
            self.kept.append(body["schema"])
            return httpx.Response(200, json={"id": len(self.kept)})
        if request.method == "POST":
            if body["schema"] in self.kept:
                return httpx.Response(200, json={"id": self.kept.index(body["schema"]) + 1})
            return httpx.Response(404, json={"error_code": 40403, "message": "Schema not found"})
        if path.endswith("/versions"):
            return httpx.Response(200, json=list(range(1, len(self.kept) + 1)))
        return httpx.Response(200, json={"schema": self.kept[int(path.rpartition("/")[2]) - 1]})


def test_looked_up_and_registered_is_one_subject_and_never_another() -> None:
    """Trap 15: serializers looked up one subject name and auto-registered another."""
    server = Server()
    keeper = registry(server)
    assert keeper.id_for(SUBJECT, SCHEMAS["trades"]) == 1
    assert keeper.id_for(SUBJECT, SCHEMAS["trades"]) == 1
    assert {question.split("/")[2] for question in server.asked if "/subjects/" in question} == {SUBJECT}
    assert server.level == "BACKWARD"
    with pytest.raises(BadInput):
        keeper.id_for("Trade", SCHEMAS["trades"])


def test_our_own_rule_holds_where_the_registry_has_none() -> None:
    server = Server(SCHEMAS["trades"])
    with pytest.raises(IncompatibleSchema, match="venue"):
        registry(server).id_for(SUBJECT, changed("trades", add="venue", default=False))
    assert len(server.kept) == 1


@pytest.mark.parametrize(
    ("level", "after"),
    [
        ("", "BACKWARD"),
        ("unsaid", "BACKWARD"),
        ("NONE", "BACKWARD"),
        ("FORWARD", "BACKWARD"),
        ("BACKWARD", "BACKWARD"),
        ("FULL", "FULL"),
    ],
)
def test_a_subject_that_was_left_without_a_level_gets_it_and_a_stricter_one_stays(level: str, after: str) -> None:
    """A process that died between its first schema and the level left the registry's own default, which may be NONE."""
    server = Server(canonical(SCHEMAS["trades"]), level=level)
    keeper = registry(server)
    assert [keeper.id_for(SUBJECT, SCHEMAS["trades"]) for _ in range(3)] == [1, 1, 1]
    assert server.level == after
    assert sum("/config/" in question for question in server.asked) <= 2, "asked once a process"


def test_who_may_only_read_uses_the_schema_that_is_there() -> None:
    server = Server(canonical(SCHEMAS["trades"]), read_only=True)
    assert registry(server).id_for(SUBJECT, SCHEMAS["trades"]) == 1


def test_what_the_registry_refuses_is_a_persons() -> None:
    with pytest.raises(IncompatibleSchema, match="409 incompatible"):
        registry(Server(conflict=True)).id_for(SUBJECT, SCHEMAS["trades"])


@pytest.mark.parametrize(
    ("wire", "header"),
    [
        ({"registry_user": "k2", "registry_password": "pw"}, "Basic azI6cHc="),
        ({"registry_password": "token"}, "Bearer token"),
        ({}, None),
    ],
)
def test_it_says_who_it_is(wire: dict[str, str], header: str | None) -> None:
    seen: list[str | None] = []

    def look(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Authorization"))
        return httpx.Response(200, json={"schema": '"string"'})

    registry(look, **wire).by_id(1)
    assert seen == [header]
