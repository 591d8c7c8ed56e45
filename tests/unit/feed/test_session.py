"""A feed's session with a transport and a producer that exist only here: no socket, no Kafka."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from k2ray.clock import Clock
from k2ray.errors import ExchangeUnavailable, SettingsError, TooOften
from k2ray.exchanges.base import Instrument
from k2ray.feed import session as session_module
from k2ray.feed.session import Ban, FeedSession, Permit
from k2ray.feed.transport import Endpoint, Sink, Transport
from k2ray.log.partition import partition_of
from k2ray.settings import Settings, load_settings
from k2ray.wire.codec import Headers, decode
from tests.support.clocks import FastClock

SYMBOLS = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT", "BTCFDUSD")


class FakeTransport:
    """What the session sees of an open connection; the test plays the peer."""

    def __init__(self, exchange: FakeExchange, sink: Sink) -> None:
        self.exchange, self.sink = exchange, sink
        self.closed = False

    def send_text(self, text: bytes) -> None:
        self.exchange.sent.append(text)
        if self.exchange.answers_questions and b"LIST_SUBSCRIPTIONS" in text:
            self.sink.on_frames([b'{"result":["a@trade"],"id":1}'])

    def ping(self, payload: bytes) -> None:
        self.exchange.pings += 1
        if self.exchange.answers_pings:
            self.sink.on_pong(payload)

    def close(self, code: int, reason: str) -> None:
        self.end("closed by us")

    def cut(self) -> None:
        self.end("cut by us")

    def end(self, reason: str) -> None:
        if not self.closed:
            self.closed = True
            self.sink.on_closed(reason)


class FakeExchange:
    """Refuses as often as told, then accepts."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.refusal = ExchangeUnavailable("refused, for the test")
        self.answers_pings = True
        self.answers_questions = False
        self.pings = 0
        self.sent: list[bytes] = []
        self.urls: list[str] = []
        self.connections: list[FakeTransport] = []
        self.hanging = False

    async def connect(self, endpoint: Endpoint, sink: Sink) -> Transport:
        self.urls.append(endpoint.url)
        if self.hanging:
            await asyncio.Event().wait()
        if self.refusals:
            self.refusals -= 1
            raise self.refusal
        self.connections.append(FakeTransport(self, sink))
        return self.connections[-1]

    @property
    def now(self) -> FakeTransport:
        return self.connections[-1]


class FakeProducer:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[tuple[str, int, list[dict[str, Any]]]] = []
        self.dead: list[tuple[str, bytes, str, str, int]] = []
        self.flushed = False

    def publish(self, topic: str, partition: int, value: bytes, headers: Headers, rows: int) -> None:
        batch = decode(value, headers)
        assert batch.num_rows == rows  # type: ignore[union-attr]
        self.records.append((topic, partition, batch.to_pylist()))  # type: ignore[union-attr]

    def dead_letter(self, exchange: str, raw: bytes, reason: str, *, source: str, at_us: int) -> None:
        self.dead.append((exchange, raw, reason, source, at_us))

    def poll(self, timeout_s: float = 0.0) -> None:
        pass

    def flush(self, timeout_s: float) -> bool:
        self.flushed = True
        return True

    @property
    def ids(self) -> list[str]:
        return [row["trade_id"] for _, _, rows in self.records for row in rows]


def trade(number: int, symbol: str = "BTCUSDT") -> bytes:
    data = {"e": "trade", "E": 1, "s": symbol, "t": number, "p": "1", "q": "1", "T": 1_790_000_000_000, "m": True}
    return json.dumps({"stream": f"{symbol.lower()}@trade", "data": data}, separators=(",", ":")).encode()


async def until(look: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + 10
    while not look():
        assert time.monotonic() < deadline_s, f"not within 10 s: {what}"
        await asyncio.sleep(0.001)


class World:
    def __init__(
        self,
        exchange: FakeExchange | None = None,
        *,
        index: int = 0,
        connections: int = 1,
        symbols: tuple[str, ...] = SYMBOLS,
        clock: Clock | None = None,
        permit: Permit | None = None,
        ban: Ban | None = None,
        uniform: Callable[[float, float], float] | None = None,
        overlap_s: float = 0.05,
        **feed: Any,
    ) -> None:
        self.exchange = exchange or FakeExchange()
        self.producer = FakeProducer()
        self.asked = 0
        self.listed = list(SYMBOLS)
        self.settings = Settings.model_validate(
            {
                "exchanges": {"binance": {"symbols": symbols, "connections": connections}},
                "feed": {"backoff_initial_s": 0.01, "linger_idle_s": 0.01, **feed},
            }
        )
        self.session = FeedSession(
            self.settings,
            "binance",
            index,
            self.producer,
            clock,
            connect=self.exchange.connect,
            ask=self.ask,
            permit=permit,
            ban=ban,
            uniform=uniform,
            overlap_s=overlap_s,
        )

    async def ask(self) -> dict[str, Instrument]:
        self.asked += 1
        if self.asked == 1:
            raise ExchangeUnavailable("away, for the test")
        return {symbol: Instrument(symbol, f"of {symbol}") for symbol in self.listed}

    async def __aenter__(self) -> World:
        self.task = asyncio.create_task(self.session.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def up(self, number: int = 1) -> None:
        await until(
            lambda: len(self.exchange.connections) == number and self.session.status().state == "open", "connection"
        )


async def test_frames_become_records_in_their_partitions() -> None:
    async with World() as world:
        await world.up()
        world.exchange.now.sink.on_frames([trade(number, SYMBOLS[number % 5]) for number in range(50)])
        await until(lambda: len(world.producer.ids) == 50, "all rows")
        for topic, partition, rows in world.producer.records:
            assert topic == "market.crypto.trades.binance"
            assert {partition_of("binance", row["symbol"], 4) for row in rows} == {partition}
            assert {row["currency"] for row in rows} == {f"of {row['symbol']}" for row in rows}, "the exchange's word"
        status = world.session.status()
        assert (status.frames, status.rows, status.dead_letters, status.state) == (50, 50, 0, "open")
        assert status.bytes == sum(len(trade(number, SYMBOLS[number % 5])) for number in range(50))
        assert status.last_data_age_s is not None


async def test_an_undecodable_frame_becomes_a_dead_letter_with_its_story() -> None:
    """Trap 3: undecodable records were logged, skipped and lost."""
    async with World() as world:
        await world.up()
        world.exchange.now.sink.on_frames([trade(1), b"nonsense", trade(2)])
        await until(lambda: world.producer.dead, "the dead letter")
        ((exchange, raw, reason, source, at_us),) = world.producer.dead
        assert (exchange, raw, source) == ("binance", b"nonsense", "feed:binance:0/1")
        assert "JSON" in reason
        assert abs(at_us - time.time_ns() // 1_000) < 60_000_000
        assert world.producer.ids == ["1", "2"]


async def test_it_reconnects_for_ever_and_loses_no_frame_that_arrived() -> None:
    async with World(FakeExchange(refusals=5), backoff_max_s=0.02) as world:
        for number in range(1, 6):
            await world.up(number)
            world.exchange.now.sink.on_frames([trade(number)])
            world.exchange.now.end("gone")
        await world.up(6)
        await until(lambda: len(world.producer.ids) == 5, "all rows")
        assert world.producer.ids == ["1", "2", "3", "4", "5"]
        status = world.session.status()
        assert (status.reconnects, status.last_reason) == (5, "gone")
        assert len(world.exchange.urls) == 11


async def test_a_peer_that_stops_answering_is_replaced() -> None:
    """Trap 7: a heartbeat is tested against a peer that stops answering."""
    async with World(clock=FastClock(100), stale_after_s=10, pong_timeout_s=5) as world:
        await world.up()
        await until(lambda: world.exchange.pings >= 3, "it is probed while it answers")
        assert len(world.exchange.connections) == 1
        world.exchange.answers_pings = False
        await until(lambda: len(world.exchange.connections) >= 2, "a new connection")
        assert "pong" in world.session.status().last_reason
        assert not world.exchange.connections[0].closed, "kept until the new one delivers"
        world.exchange.answers_pings = True
        await until(lambda: world.exchange.connections[0].closed, "the old one goes")
        status = world.session.status()
        assert (status.rotations["stale"], status.reconnects) == (1, 0)
        assert status.stale_probes >= 2


async def test_rotation_closed_the_old_connection_before_the_new_one_was_up() -> None:
    """Trap 6: the old connection was closed before the new one was up."""
    async with World(clock=FastClock(20), overlap_s=2) as world:
        world.exchange.answers_questions = True
        await world.up()
        old = world.exchange.now
        old.sink.on_frames([b'{"e":"serverShutdown","E":1}', trade(1)])
        await until(lambda: len(world.exchange.connections) == 2, "the new connection")
        new = world.exchange.now
        old.sink.on_frames([trade(2)])
        new.sink.on_frames([trade(4)])
        await until(lambda: "4" in world.producer.ids, "rows of the new connection")
        for _ in range(20):
            assert not old.closed, "it has not delivered what came before the new one's first row"
            await asyncio.sleep(0.001)
        old.sink.on_frames([trade(3), trade(4)])
        await until(lambda: old.closed, "the old one is closed")
        new.sink.on_frames([trade(5)])
        await until(lambda: "5" in world.producer.ids, "the last row")
        assert set(world.producer.ids) == {"1", "2", "3", "4", "5"}
        assert not new.closed
        status = world.session.status()
        assert (status.rotations["shutdown"], status.reconnects, status.rotating) == (1, 0, False)


async def test_quotes_cover_their_ids_per_connection() -> None:
    """A quote covers the ids since the quote before it on the same connection; the first one itself alone."""

    def quote(number: int) -> bytes:
        data = {"u": number, "s": "BTCUSDT", "b": "1", "B": "1", "a": "2", "A": "1"}
        return json.dumps({"stream": "btcusdt@bookTicker", "data": data}, separators=(",", ":")).encode()

    async with World(clock=FastClock(20)) as world:
        await world.up()
        first = world.exchange.now
        first.sink.on_frames([quote(10), quote(20)])
        await until(lambda: len(world.producer.records) >= 1, "quotes of the first connection")
        world.session.rotate()
        await until(lambda: len(world.exchange.connections) == 2, "the new connection")
        world.exchange.now.sink.on_frames([quote(30), quote(40)])
        first.sink.on_frames([quote(30), quote(40)])
        await until(lambda: sum(len(rows) for _, _, rows in world.producer.records) == 6, "all quotes")
        rows = [row for _, _, rows in world.producer.records for row in rows]
        covered = sorted((row["sequence_from"], row["source_sequence"]) for row in rows)
        assert covered == [(9, 10), (10, 20), (20, 30), (29, 30), (30, 40), (30, 40)]


async def test_a_rotation_on_request_says_what_becomes_of_it() -> None:
    exchange = FakeExchange(refusals=3)
    async with World(exchange, clock=FastClock(20), backoff_initial_s=5) as world:
        assert "no connection is up" in world.session.rotate()
        world.exchange.answers_questions = True
        await world.up()
        assert world.session.rotate() == "rotating"
        await until(lambda: world.session.status().rotations["operator"] == 1, "the rotation")
        assert world.session.status().ready
    idle = (partition_of("binance", "BTCUSDT", 4) + 1) % 4
    async with World(index=idle, connections=4, symbols=("BTCUSDT",)) as world:
        assert "owns no symbol" in world.session.rotate()
        assert world.session.status().ready, "nothing to record is recorded"


async def test_the_circuit_breaker_only_ever_received_successes() -> None:
    """Trap 9: the circuit breaker around the WebSocket only ever received successes, so it could not open."""
    asked: list[float] = []

    def uniform(low: float, high: float) -> float:
        asked.append(high)
        return low

    async with World(FakeExchange(refusals=6), uniform=uniform, backoff_initial_s=1, backoff_max_s=10) as world:
        await world.up()
        assert asked[:6] == [1, 2, 4, 8, 10, 10]
        assert "refused" in world.session.status().last_reason


async def test_a_refusal_for_connecting_too_often_is_told_to_all() -> None:
    """What one feed learns, the others need not try."""
    told: list[tuple[str, float]] = []

    async def ban(resource: str, for_s: float) -> None:
        told.append((resource, for_s))

    exchange = FakeExchange(refusals=1)
    exchange.refusal = TooOften("HTTP 429", 33)
    async with World(exchange, ban=ban) as world:
        await world.up()
        assert told == [("connects", 33)]
        exchange.refusals, exchange.refusal = 1, ExchangeUnavailable("refused, for the test")
        world.exchange.now.end("gone")
        await world.up(2)
        assert told == [("connects", 33)], "any other refusal is nobody else's business"


async def test_every_connect_waits_for_its_permit() -> None:
    granted = asyncio.Semaphore(0)

    async def permit(resource: str, amount: int) -> None:
        assert (resource, amount) == ("connects", 1)
        await granted.acquire()

    async with World(permit=permit) as world:
        await asyncio.sleep(0.05)
        assert world.exchange.urls == []
        granted.release()
        await world.up()
        world.session.rotate()
        await asyncio.sleep(0.05)
        assert len(world.exchange.urls) == 1
        started = time.monotonic()
        assert await world.session.drain() is True, "who waits for a permit can be drained"
        assert time.monotonic() - started < 5


def test_more_streams_than_a_connection_carries_stop_the_start() -> None:
    symbols = tuple(f"S{number}USDT" for number in range(600))
    with pytest.raises(SettingsError, match=r"connections: feed 0 would carry 1200 streams"):
        World(symbols=symbols)


async def test_a_drain_publishes_all_that_arrived_and_flushes() -> None:
    async with World(linger_idle_s=60) as world:
        await world.up()
        world.exchange.now.sink.on_frames([trade(number) for number in range(10)])
        assert await world.session.drain() is True
        assert len(world.producer.ids) == 10
        assert world.producer.flushed
        assert world.exchange.now.closed
        await asyncio.wait_for(world.task, 5)
        assert world.session.status().state == "drained"
        assert await world.session.drain() is True, "a second caller gets the same answer"


@pytest.mark.parametrize("when", ["waiting", "connecting"])
async def test_a_drain_is_prompt_while_nothing_is_open(when: str) -> None:
    """Trap 8: the stop was ignored while idle."""
    exchange = FakeExchange(refusals=10**9 if when == "waiting" else 0)
    exchange.hanging = when == "connecting"
    async with World(exchange, backoff_initial_s=60, backoff_max_s=60) as world:
        await until(lambda: exchange.urls, "an attempt")
        started = time.monotonic()
        assert await world.session.drain() is True
        assert time.monotonic() - started < 2


async def test_a_feed_that_owns_no_symbol_idles_and_drains() -> None:
    idle = (partition_of("binance", "BTCUSDT", 4) + 1) % 4
    async with World(index=idle, connections=4, symbols=("BTCUSDT",)) as world:
        await asyncio.sleep(0.1)
        status = world.session.status()
        assert (status.state, status.symbols, world.exchange.urls, world.asked) == ("idle", 0, [], 0)
        assert status.loop_age_s < 1
        assert await world.session.drain() is True


def test_feeds_share_the_symbols_by_partition() -> None:
    owned = [World(index=index, connections=3).session.symbols for index in range(3)]
    assert sorted(symbol for symbols in owned for symbol in symbols) == sorted(SYMBOLS)
    for index, symbols in enumerate(owned):
        assert all(partition_of("binance", symbol, 4) % 3 == index for symbol in symbols)


async def test_the_feeds_metrics_move() -> None:
    """Trap 27: metrics that were never set."""

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, {"exchange": "binance", "feed": "0", **labels}) or 0.0

    names: dict[str, dict[str, str]] = {
        "k2ray_feed_frames_total": {},
        "k2ray_feed_rows_total": {"channel": "trades", "symbol_class": "crypto"},
        "k2ray_feed_ignored_frames_total": {},
        "k2ray_feed_connects_total": {"outcome": "opened"},
    }
    before = {name: value(name, **labels) for name, labels in names.items()}
    size = value("k2ray_feed_bytes_total")
    failed = value("k2ray_feed_connects_total", outcome="failed")
    async with World(FakeExchange(refusals=1)) as world:
        await world.up()
        world.exchange.now.sink.on_frames([trade(1), b'{"stream":"btcusdt@kline_1m","data":{}}'])
        await until(lambda: world.producer.ids, "the row")
        await until(lambda: value("k2ray_feed_data_age_seconds") > 0, "the age")
    assert {name: value(name, **labels) - before[name] for name, labels in names.items()} == {
        "k2ray_feed_frames_total": 2,
        "k2ray_feed_rows_total": 1,
        "k2ray_feed_ignored_frames_total": 1,
        "k2ray_feed_connects_total": 1,
    }
    assert value("k2ray_feed_connects_total", outcome="failed") - failed == 1
    assert value("k2ray_feed_bytes_total") - size == len(trade(1)) + len(b'{"stream":"btcusdt@kline_1m","data":{}}')


async def test_the_connections_metrics_move() -> None:
    """Trap 27: metrics that were never set."""

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, {"exchange": "binance", "feed": "0", **labels}) or 0.0

    reconnects, rotations, probes = (
        value("k2ray_feed_reconnects_total"),
        value("k2ray_feed_rotations_total", reason="operator"),
        value("k2ray_feed_stale_probes_total"),
    )
    pings = value("k2ray_feed_pings_total", outcome="sent"), value("k2ray_feed_pings_total", outcome="answered")
    async with World(clock=FastClock(50)) as world:
        world.exchange.answers_questions = True
        await world.up()
        await until(lambda: value("k2ray_feed_connection", kind="open") == 1, "the state")
        await until(lambda: value("k2ray_feed_ready") == 1, "ready")
        await until(lambda: value("k2ray_feed_connection_age_seconds") > 0, "the connection's age")
        await until(lambda: value("k2ray_feed_pong_age_seconds") > 0, "the pong's age")
        await until(lambda: value("k2ray_feed_stale_probes_total") > probes, "a probe")
        await until(lambda: value("k2ray_feed_pings_total", outcome="sent") > pings[0], "a ping")
        await until(lambda: value("k2ray_feed_pings_total", outcome="answered") > pings[1], "a pong")
        world.session.rotate()
        await until(lambda: value("k2ray_feed_rotations_total", reason="operator") == rotations + 1, "a rotation")
        world.exchange.now.end("gone")
        await until(lambda: value("k2ray_feed_reconnects_total") == reconnects + 1, "a reconnect")
        await world.session.drain()
    assert value("k2ray_feed_connection", kind="open") == 0
    assert value("k2ray_feed_connection", kind="drained") == 1
    assert value("k2ray_feed_ready") == 0


async def test_symbols_that_the_exchange_does_not_know_are_said_and_asked_about_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(symbols=(*SYMBOLS, "BTCUSTD"))
    monkeypatch.setattr(session_module, "UNKNOWN_ASK_S", 0.01)
    async with world:
        assert world.session.status().unknown_symbols == (), "nothing is known before it answers"
        await until(lambda: world.session.status().unknown_symbols == ("BTCUSTD",), "it is said")
        await world.up()
        asked = world.asked
        await until(lambda: world.asked > asked, "it is asked about again")
        world.listed.append("BTCUSTD")
        await until(lambda: world.session.status().unknown_symbols == (), "the exchange lists it")


async def test_a_programming_error_while_connecting_ends_the_run() -> None:
    async def broken(endpoint: object, sink: object) -> Transport:
        raise AttributeError("a loop whose transports are different")

    async def ask() -> dict[str, Instrument]:
        return {}

    settings = load_settings(environ={}, arguments={"data_dir": "."})
    session = FeedSession(settings, "binance", 0, FakeProducer(), connect=broken, ask=ask)
    with pytest.raises(AttributeError, match="transports are different"):
        await asyncio.wait_for(session.run(), 10)
