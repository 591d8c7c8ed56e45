"""A registry with Confluent's REST API (Confluent, Apicurio's ccompat, Karapace, Redpanda), through httpx.

confluent-kafka brings a client, but its extra could not be installed beside what we use (it pins newer releases of
httpx' successor and certifi), and four calls are all that is needed. Errors by what to do: no answer, 5xx, 408 and 429
mean "ask again"; a clear "there is none" (40401, 40402, 40403) is an answer; 409 is a refusal; 401 and 403 need a
person.

A registry's own default may be NONE (Apicurio's is): the subject is set to our level before its second schema, also
where it has one already (whoever made it may have died before that), and the rule is checked here as well. A level that
is as strict as ours, or stricter, is somebody's decision and stays.
"""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import quote

import httpx

from k2ray.errors import IncompatibleSchema, OperatorNeeded, RegistryUnavailable
from k2ray.feed.transport import tls_context
from k2ray.logs import get_logger
from k2ray.settings import Tls, Wire
from k2ray.wire.compatibility import canonical
from k2ray.wire.registry import check_compatible, check_subject
from k2ray.wire.schemas import UnknownSchema

_TYPE = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
_ASK_AGAIN = {408, 425, 429}
_NOT_FOUND = 404
_CONFLICT = 409
_FORBIDDEN = {401, 403}
_AS_STRICT = {
    "BACKWARD": {"BACKWARD", "BACKWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"},
    "BACKWARD_TRANSITIVE": {"BACKWARD_TRANSITIVE", "FULL_TRANSITIVE"},
}

_log = get_logger(__name__)


class RestRegistry:
    """Asks a remote registry; threads may share it.

    Args:
        wire: Address, authentication, level.
        tls: Whom to trust with https.
    """

    def __init__(self, wire: Wire, tls: Tls) -> None:
        assert wire.registry_url is not None
        self._url = wire.registry_url
        self._level = wire.compatibility
        headers = dict(_TYPE)
        auth: httpx.Auth | None = None
        if wire.registry_user is not None:
            auth = httpx.BasicAuth(wire.registry_user, wire.registry_password or "")
        elif wire.registry_password is not None:
            headers["Authorization"] = f"Bearer {wire.registry_password}"
        verify = tls_context(tls.ca_file, tls.crl_file) if self._url.startswith("https:") else True
        self._client = httpx.Client(
            verify=verify, auth=auth, headers=headers, timeout=wire.registry_timeout_s, trust_env=False
        )
        self._lock = threading.Lock()
        self._leveled: set[str] = set()

    def by_id(self, schema_id: int) -> str:
        """Return the schema of an id.

        Raises:
            UnknownSchema: The registry says that it has none.
            RegistryUnavailable: It does not answer, or not now.
        """
        answer = self._ask("GET", f"/schemas/ids/{schema_id}")
        if answer is None:
            raise UnknownSchema(f"unknown schema: {schema_id} is not in {self._url}")
        kind = answer.get("schemaType", "AVRO")
        if kind != "AVRO":
            raise UnknownSchema(f"unknown schema: {schema_id} is {kind}, not Avro")
        return str(answer["schema"])

    def id_for(self, subject: str, schema: str) -> int:
        """Return the schema's id under its subject, registered there if it is new and compatible.

        Raises:
            BadInput: That is no subject of ours.
            IncompatibleSchema: The registry, or its schemas by our own rule, refuse it.
            RegistryUnavailable: It does not answer, or not now.
        """
        check_subject(subject)
        wanted = canonical(schema)
        path = f"/subjects/{quote(subject, safe='')}"
        # Two of our threads registering at once would see each other's half-made subject.
        with self._lock:
            found = self._ask("POST", path, {"schema": wanted})
            if found is not None:
                self._keep_level(subject)
                return int(found["id"])
            old = self.versions(subject)
            check_compatible(subject, wanted, old, self._level)
            if old:
                self._set_level(subject)
            made = self._ask("POST", f"{path}/versions", {"schema": wanted})
            if made is None:
                raise RegistryUnavailable(f"{self._url} does not know the subject {subject} that it was to make")
            self._set_level(subject)
            return int(made["id"])

    def versions(self, subject: str) -> list[str]:
        """Return the subject's schemas, oldest first."""
        path = f"/subjects/{quote(subject, safe='')}/versions"
        numbers = self._ask("GET", path) or []
        found = [self._ask("GET", f"{path}/{number}") for number in sorted(numbers)]
        return [str(version["schema"]) for version in found if version is not None]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _keep_level(self, subject: str) -> None:
        """Set the level of a subject that has our schema; who may only read goes on without it."""
        try:
            self._set_level(subject)
        except OperatorNeeded as error:
            _log.warning("compatibility_not_set", subject=subject, level=self._level, reason=str(error))
            self._leveled.add(subject)

    def _set_level(self, subject: str) -> None:
        if subject in self._leveled:
            return
        path = f"/config/{quote(subject, safe='')}"
        if self._level_of(path) not in _AS_STRICT[self._level]:
            self._ask("PUT", path, {"compatibility": self._level})
        self._leveled.add(subject)

    def _level_of(self, path: str) -> str | None:
        """Return a subject's own level; None where it has none, whatever words a registry has for that."""
        try:
            present = self._ask("GET", path)
        except OperatorNeeded:
            return None
        return present.get("compatibilityLevel") if isinstance(present, dict) else None

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer's JSON; None for a clear "there is none"."""
        try:
            answer = self._client.request(method, self._url + path, json=body)
        except httpx.HTTPError as error:
            raise RegistryUnavailable(f"the registry {self._url} does not answer: {error!r}") from error
        status = answer.status_code
        if status < 300:
            try:
                return answer.json()
            except ValueError as error:
                raise RegistryUnavailable(f"{self._url}{path} answered no JSON") from error
        said = _said(answer)
        if status == _NOT_FOUND and said.startswith("404"):
            return None
        if status == _CONFLICT:
            raise IncompatibleSchema(f"{self._url} refuses a schema ({path}): {said}")
        if status in _FORBIDDEN:
            raise OperatorNeeded(f"{self._url} refuses us: {status} {said}; see wire.registry_user, registry_password")
        if status >= 500 or status in _ASK_AGAIN:
            raise RegistryUnavailable(f"{self._url}{path} answered {status} {said}")
        raise OperatorNeeded(f"{self._url}{path} answered {status} {said}: is wire.registry_url right?")


def _said(answer: httpx.Response) -> str:
    """Return the error's own code and message; a 404 without a code is no registry's."""
    try:
        error = answer.json()
        return f"{error['error_code']} {error.get('message', '')}"
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
