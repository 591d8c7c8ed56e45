"""Schemas for every other actor: asked of the serializer, by threads that may wait.

Satisfies `k2ray.wire.schemas.SchemaSource`; the caches over it are `k2ray.wire.schemas.Schemas`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from actors import edge
from actors.names import ActorName
from k2ray.errors import OperatorNeeded, RegistryUnavailable, SupervisorUnavailable
from k2ray.log.topics import table_topics
from k2ray.logs import get_logger
from k2ray.settings import Settings
from k2ray.wire.encoder import ARROW, AvroEncoder, RowEncoder
from k2ray.wire.schemas import Schemas

SERIALIZER = "serializer"

ANSWER_TIMEOUT_S = 20.0
"""Longer than the serializer gives its registry, so that its own answer, which says more, comes first."""

LEARN_RETRY_S = 1.0
REFUSED_RETRY_S = 30.0

_log = get_logger(__name__)


class SerializerSchemas:
    """Asks the newest living serializer.

    Args:
        namespace: `DataDir.namespace`.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._handle: Any = None

    def by_id(self, schema_id: int) -> str:
        """Return the schema of an id; raises UnknownSchema or RegistryUnavailable."""
        return str(self._ask("by_id", schema_id))

    def id_for(self, subject: str, schema: str) -> int:
        """Return the schema's id under its subject; raises IncompatibleSchema or RegistryUnavailable."""
        return int(self._ask("id_for", subject, schema))

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            if self._handle is None:
                self._handle = self._find()
            return edge.ask(self._handle, method, *arguments, timeout_s=ANSWER_TIMEOUT_S)
        except (SupervisorUnavailable, *edge.RAY_ERRORS) as error:
            self._handle = None
            raise RegistryUnavailable(f"the serializer: {edge.first_line(error)}") from error

    def _find(self) -> Any:
        living = [name for name in edge.list_children(self._namespace) if name.logical == SERIALIZER]
        if not living:
            raise SupervisorUnavailable("no serializer lives")
        newest: ActorName = max(living, key=lambda name: name.generation)
        return edge.find(str(newest), self._namespace)


def schemas_of(namespace: str, settings: Settings) -> Schemas:
    """Return an actor's own cached view of the schemas.

    Args:
        namespace: `DataDir.namespace`.
        settings: For the cache's size.
    """
    return Schemas(SerializerSchemas(namespace), settings.wire.cache_size)


def encoder_of(namespace: str, settings: Settings) -> RowEncoder:
    """Return the encoder of an actor that produces rows; give it to `keep_learning` as well."""
    return ARROW if settings.wire.codec == "arrow" else AvroEncoder(schemas_of(namespace, settings))


async def keep_learning(encoder: RowEncoder, settings: Settings) -> None:
    """Get the schema ids of all topics, asking again until all are known; until then their rows go out as Arrow."""
    if not isinstance(encoder, AvroEncoder):
        return
    wanted = {topic: table for table in settings.exchanges.tables() for topic in table_topics(settings, table)}
    told: set[str] = set()
    while wanted:
        pause_s = LEARN_RETRY_S
        for topic, table in list(wanted.items()):
            try:
                await asyncio.to_thread(encoder.learn, topic, table)
            except RegistryUnavailable as error:
                reason = str(error)
            except OperatorNeeded as error:
                reason, pause_s = str(error), REFUSED_RETRY_S
            else:
                del wanted[topic]
                continue
            if topic not in told:
                told.add(topic)
                _log.warning("rows go out as Arrow", topic=topic, reason=reason)
        if wanted:
            await asyncio.sleep(pause_s)
