"""The serializer and those who ask it, as plain classes: what is registered, kept, refused, and asked again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors import schemas as asking
from actors.schemas import SerializerSchemas, encoder_of, keep_learning
from actors.serializer import SerializerActor
from k2ray import metrics
from k2ray.errors import IncompatibleSchema, RegistryUnavailable, SupervisorUnavailable
from k2ray.settings import Settings, load_settings
from k2ray.wire.avro_schema import SCHEMAS
from k2ray.wire.encoder import ARROW, AvroEncoder, publish_rows
from k2ray.wire.schemas import Schemas, UnknownSchema
from tests.support.rows import trades
from tests.support.schemas import MemorySchemas

TOPIC = "market.crypto.trades.binance"


def settings_of(folder: Path, **wire: Any) -> Settings:
    arguments = {
        "data_dir": str(folder),
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},
        "wire": {"codec": "avro", **wire},
        "exchanges": {"binance": {"channels": ["trades", "quotes"]}},
    }
    return load_settings(arguments=arguments, environ={})


class Keeping(MemorySchemas):
    """A registry in memory that may refuse a subject, and can be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = ""
        self.closed = False
        self.subjects: list[str] = []

    def id_for(self, subject: str, schema: str) -> int:
        if self.refused and self.refused in subject:
            raise IncompatibleSchema(f"subject {subject} (BACKWARD): no")
        number = super().id_for(subject, schema)
        self.subjects.append(subject)
        return number

    def close(self) -> None:
        self.closed = True


def actor_of(folder: Path, registry: Keeping, **wire: Any) -> SerializerActor:
    actor = SerializerActor("serializer#1", settings_of(folder, **wire).to_json())
    actor._registry = registry  # type: ignore[assignment]
    return actor


async def until(look: Any) -> None:
    for _ in range(2_000):
        if look():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("never happened")


async def test_it_registers_each_topics_schema_under_that_topics_subject(tmp_path: Path) -> None:
    """Trap 15: the subject that is looked up and the one that is registered are one name."""
    registry = Keeping()
    actor = actor_of(tmp_path, registry)
    run = asyncio.create_task(actor.run())
    await until(lambda: actor.report()["registered"] == 2)
    assert sorted(registry.subjects) == ["market.crypto.quotes.binance-value", "market.crypto.trades.binance-value"]
    number = await actor.id_for("market.crypto.trades.binance-value", SCHEMAS["trades"])
    assert await actor.by_id(number) == SCHEMAS["trades"]
    assert len(registry.subjects) == 2
    assert actor.report()["trouble"] is None
    await actor.drain()
    await run
    assert registry.closed


async def test_a_registry_that_comes_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.serializer.RETRY_S", 0.01)
    registry = Keeping()
    registry.away = True
    actor = actor_of(tmp_path, registry)
    run = asyncio.create_task(actor.run())
    await until(lambda: actor.report()["trouble"] == "the registry is away")
    with pytest.raises(RegistryUnavailable):
        await actor.by_id(7)
    registry.away = False
    await until(lambda: actor.report()["registered"] == 2)
    assert actor.report()["trouble"] is None
    with pytest.raises(UnknownSchema):
        await actor.by_id(7)
    await actor.drain()
    await run


async def test_a_refused_schema_is_said_and_holds_nobody_else_up(tmp_path: Path) -> None:
    registry = Keeping()
    registry.refused = "trades"
    actor = actor_of(tmp_path, registry)
    run = asyncio.create_task(actor.run())
    await until(lambda: actor.report()["registered"] == 1)
    await until(lambda: actor.report()["trouble"])
    assert "subject market.crypto.trades.binance-value (BACKWARD)" in str(actor.report()["trouble"])
    await actor.drain()
    await run


async def test_fifteen_schemas_evict_five_from_the_serializers_cache(tmp_path: Path) -> None:
    registry = Keeping()
    registry.kept = {number: f'"{number}"' for number in range(1, 16)}
    actor = actor_of(tmp_path, registry, codec="arrow")
    for number in range(1, 16):
        assert await actor.by_id(number) == f'"{number}"'
    report = actor.report()
    assert (report["cached"], report["misses"], report["evictions"], report["wanted"]) == (10, 15, 5, 0)
    assert metrics.SCHEMA_CACHE_EVICTIONS.labels("registry")._value.get() >= 5


# Those who ask.


class Asked:
    """Stands in for `actors.edge`: a serializer that dies and comes back as the next generation."""

    def __init__(self, registry: MemorySchemas, monkeypatch: pytest.MonkeyPatch) -> None:
        self.registry = registry
        self.generation: int | None = 1
        self.found: list[str] = []
        monkeypatch.setattr(asking.edge, "list_children", self.list_children)
        monkeypatch.setattr(asking.edge, "find", self.find)
        monkeypatch.setattr(asking.edge, "ask", self.ask)

    def list_children(self, _namespace: str) -> frozenset[asking.ActorName]:
        names = {asking.ActorName("feed:binance:0", 1)}
        if self.generation is not None:
            names |= {asking.ActorName("serializer", self.generation), asking.ActorName("serializer", 0)}
        return frozenset(names)

    def find(self, name: str, _namespace: str) -> str:
        self.found.append(name)
        return name

    def ask(self, handle: str, method: str, *arguments: Any, timeout_s: float) -> Any:
        assert timeout_s > 0
        if handle != f"serializer#{self.generation}":
            raise SupervisorUnavailable("died")
        return getattr(self.registry, method)(*arguments)


def test_the_newest_serializer_is_asked_and_the_next_one_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = MemorySchemas()
    registry.kept = {1: SCHEMAS["trades"]}
    world = Asked(registry, monkeypatch)
    source = SerializerSchemas("k2")
    assert source.by_id(1) == SCHEMAS["trades"]
    world.generation = 2
    with pytest.raises(RegistryUnavailable, match="the serializer: died"):
        source.by_id(1)
    assert source.by_id(1) == SCHEMAS["trades"]
    assert world.found == ["serializer#1", "serializer#2"]
    world.generation = None
    with pytest.raises(RegistryUnavailable):
        source.by_id(1)
    with pytest.raises(RegistryUnavailable, match="no serializer lives"):
        source.by_id(1)


def test_what_a_process_has_met_it_reads_while_the_serializer_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = MemorySchemas()
    registry.kept = {1: SCHEMAS["trades"]}
    world = Asked(registry, monkeypatch)
    schemas = Schemas(SerializerSchemas("k2"), 10)
    reader = schemas.reader(1, "trades")
    world.generation = None
    assert schemas.reader(1, "trades") is reader
    with pytest.raises(RegistryUnavailable):
        schemas.reader(2, "trades")


class Records:
    """A producer that remembers."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def publish(self, topic: str, partition: int, value: bytes, headers: list[tuple[str, bytes]], rows: int) -> None:
        self.kinds.append("arrow")

    def publish_each(self, topic: str, partition: int, values: list[bytes]) -> None:
        self.kinds += ["avro"] * len(values)


async def test_rows_go_out_as_arrow_until_their_schema_has_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "LEARN_RETRY_S", 0.01)
    registry = MemorySchemas()
    registry.away = True
    Asked(registry, monkeypatch)
    settings = settings_of(tmp_path)
    encoder, producer = encoder_of("k2", settings), Records()
    assert isinstance(encoder, AvroEncoder)
    before = metrics.WIRE_FALLBACK_ROWS.labels(TOPIC)._value.get()
    learning = asyncio.create_task(keep_learning(encoder, settings))
    await until(lambda: registry.asked >= 2)
    publish_rows(producer, encoder, TOPIC, 0, "trades", trades(3))
    assert metrics.WIRE_FALLBACK_ROWS.labels(TOPIC)._value.get() == before + 3
    registry.away = False
    await asyncio.wait_for(learning, 10)
    publish_rows(producer, encoder, TOPIC, 0, "trades", trades(2))
    assert producer.kinds == ["arrow", "avro", "avro"]


async def test_with_codec_arrow_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = MemorySchemas()
    Asked(registry, monkeypatch)
    settings = settings_of(tmp_path, codec="arrow")
    encoder = encoder_of("k2", settings)
    assert encoder is ARROW
    await keep_learning(encoder, settings)
    assert registry.asked == 0
