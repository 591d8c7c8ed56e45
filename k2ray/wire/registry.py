"""Schema registries: a subject's schemas in order, each with an id that stands for it for ever.

Two kinds: a remote one with Confluent's REST API (`registry_rest.py`), and the built-in one, a compacted topic
(`registry_topic.py`). Both obey the same rules, which are here: a schema is looked up and registered under one subject,
the topic's own, never under another; a new one must be compatible with those that are there.

Not its job: caching (`schemas.py`), who in the system asks (`actors/serializer.py`).
"""

from __future__ import annotations

from typing import Protocol

from k2ray.errors import BadInput, IncompatibleSchema
from k2ray.settings import Settings
from k2ray.wire.compatibility import refusals

SUFFIX = "-value"


class Registry(Protocol):
    """Keeps schemas; its errors are ours. It satisfies `schemas.SchemaSource`."""

    def by_id(self, schema_id: int) -> str:
        """Return the schema of an id; raises UnknownSchema or RegistryUnavailable."""

    def id_for(self, subject: str, schema: str) -> int:
        """Return the schema's id under its subject, registered if need be.

        Raises:
            BadInput: That is no subject of ours.
            IncompatibleSchema: The subject's schemas do not allow it.
            RegistryUnavailable: Nobody answers.
        """

    def versions(self, subject: str) -> list[str]:
        """Return the subject's schemas, oldest first; raises RegistryUnavailable."""

    def close(self) -> None:
        """Let go of connections."""


def check_subject(subject: str) -> None:
    """Raise BadInput for a name that no topic's values have: under it, the rules of the right one would not apply.

    Args:
        subject: `<topic>-value`.
    """
    if not subject.endswith(SUFFIX) or subject == SUFFIX:
        raise BadInput(f"{subject!r} is not the subject of a topic's values, which is <topic>{SUFFIX}")


def check_compatible(subject: str, new: str, old: list[str], compatibility: str) -> None:
    """Raise IncompatibleSchema where the rules forbid a new schema.

    Args:
        subject: Whose.
        new: The schema to be registered.
        old: The subject's schemas, oldest first.
        compatibility: `wire.compatibility`.
    """
    found = refusals(new, old, compatibility)
    if found:
        raise IncompatibleSchema(f"subject {subject} ({compatibility}): {'; '.join(found)}")


def open_registry(settings: Settings, bootstrap: str) -> Registry:
    """Return the registry of the settings, unasked so far.

    Args:
        settings: All settings.
        bootstrap: Kafka's address, for the built-in one.
    """
    if settings.wire.registry_url is not None:
        from k2ray.wire.registry_rest import RestRegistry

        return RestRegistry(settings.wire, settings.tls)
    from k2ray.wire.registry_topic import TopicRegistry

    return TopicRegistry(bootstrap, settings.kafka, settings.wire.compatibility)


class LazyRegistry:
    """The registry of the settings, opened when it is first asked: most writers never meet an Avro record.

    Args:
        settings: All settings.
        bootstrap: Kafka's address.
    """

    def __init__(self, settings: Settings, bootstrap: str) -> None:
        self._settings = settings
        self._bootstrap = bootstrap
        self._registry: Registry | None = None

    def by_id(self, schema_id: int) -> str:
        """Return the schema of an id."""
        return self._opened().by_id(schema_id)

    def id_for(self, subject: str, schema: str) -> int:
        """Return the schema's id under its subject, registered if need be."""
        return self._opened().id_for(subject, schema)

    def close(self) -> None:
        """Close it if it was opened."""
        if self._registry is not None:
            self._registry.close()

    def _opened(self) -> Registry:
        if self._registry is None:
            self._registry = open_registry(self._settings, self._bootstrap)
        return self._registry
