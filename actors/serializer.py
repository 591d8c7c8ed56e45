"""The serializer: the one actor that owns schemas and talks to the registry; all other processes ask it, seldom.

It starts first and is drained last. With codec avro it registers our schemas under their topics' subjects as soon as
the registry answers. Nobody waits for it on the hot path: readers and writers keep what they asked in caches of their
own (`k2ray/wire/cache.py`), a writer that meets a new id while this actor is away keeps the records and asks again, a
feed sends Arrow meanwhile.

Who asks: `actors/schemas.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from actors.child import Child
from k2ray.errors import OperatorNeeded, TryAgain
from k2ray.log.topics import table_topics
from k2ray.wire.avro_schema import SCHEMAS
from k2ray.wire.cache import SchemaCache
from k2ray.wire.framing import subject_of
from k2ray.wire.registry import LazyRegistry

TURN_S = 0.2
RETRY_S = 2.0
REFUSED_RETRY_S = 30.0
"""A refused schema needs a person; what they change at the registry is seen this much later."""


class SerializerActor(Child):
    """Answers what an id stands for, and which id a schema has; named `serializer#<generation>`."""

    def __init__(self, name: str, settings_json: str) -> None:
        super().__init__(name, settings_json)
        self._registry = LazyRegistry(self.settings, self.bootstrap)
        size = self.settings.wire.cache_size
        self._by_id: SchemaCache[int, str] = SchemaCache("registry", size)
        self._ids: SchemaCache[tuple[str, str], int] = SchemaCache("registry_ids", size)
        self._ours = self._own_subjects() if self.settings.wire.codec == "avro" else {}
        self._registered: dict[str, int] = {}
        self._trouble: str | None = None
        self._asked = 0

    async def main(self) -> None:
        """Register our schemas, and answer until drained."""
        registering = asyncio.create_task(self._register_ours())
        try:
            while not self.stopping.is_set():
                self.turn()
                if registering.done():
                    registering.result()
                await asyncio.sleep(TURN_S)
        finally:
            registering.cancel()
            await asyncio.to_thread(self._registry.close)

    async def by_id(self, schema_id: int) -> str:
        """Return the schema of an id.

        Raises:
            UnknownSchema: The registry has none.
            RegistryUnavailable: It does not answer; ask again.
        """
        self._asked += 1
        return await asyncio.to_thread(self._by_id.get, schema_id, self._registry.by_id)

    async def id_for(self, subject: str, schema: str) -> int:
        """Return the schema's id under its subject, registered if need be.

        Raises:
            BadInput: That is no subject of a topic.
            IncompatibleSchema: The subject's schemas do not allow it.
            RegistryUnavailable: The registry does not answer; ask again.
        """
        self._asked += 1
        return await asyncio.to_thread(self._ids.get, (subject, schema), lambda key: self._registry.id_for(*key))

    async def _register_ours(self) -> None:
        while len(self._registered) < len(self._ours):
            pause_s = await self._register()
            await asyncio.sleep(pause_s)

    async def _register(self) -> float:
        """Register what is not registered yet; returns the seconds until the next try."""
        trouble, pause_s = None, 0.0
        for subject, schema in self._ours.items():
            if subject in self._registered:
                continue
            try:
                self._registered[subject] = await self.id_for(subject, schema)
            except TryAgain as error:
                trouble, pause_s = str(error), RETRY_S
            except OperatorNeeded as error:
                # Other subjects, and everything that is read, go on; the feeds of this one send Arrow.
                trouble, pause_s = str(error), REFUSED_RETRY_S
        self._note(trouble)
        return pause_s

    def _own_subjects(self) -> dict[str, str]:
        tables = self.settings.exchanges.tables()
        return {subject_of(topic): SCHEMAS[table] for table in tables for topic in table_topics(self.settings, table)}

    def _note(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self._trouble:
            self.log.warning("schemas not registered", reason=trouble)
        self._trouble = trouble

    def report(self) -> dict[str, Any]:
        """Return what is registered, what is in the way, and how the caches do."""
        return {
            "codec": self.settings.wire.codec,
            "registered": len(self._registered),
            "wanted": len(self._ours),
            "trouble": self._trouble,
            "asked": self._asked,
            "cached": len(self._by_id) + len(self._ids),
            "hits": self._by_id.hits + self._ids.hits,
            "misses": self._by_id.misses + self._ids.misses,
            "evictions": self._by_id.evictions + self._ids.evictions,
        }
