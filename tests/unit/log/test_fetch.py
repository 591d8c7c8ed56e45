"""What a reader makes of the client's messages: runs, single records, and errors that take nothing with them."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from confluent_kafka import KafkaError

from k2ray.errors import BrokerUnavailable
from k2ray.log import consumer
from k2ray.log.consumer import LogReader, Position
from k2ray.log.records import LogRecord, RecordRun, last_offset, record_count

TOPIC = "market.crypto.trades.binance"
SOME = [("k2ray-kind", b"rows")]


class Message:
    """What the client gives: a record, or an error."""

    def __init__(
        self, offset: int, *, partition: int = 0, headers: Any = None, error: int | None = None, epoch: int = 3
    ) -> None:
        self._values = {"offset": offset, "partition": partition, "headers": headers, "leader_epoch": epoch}
        self._error = None if error is None else KafkaError(error)

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return TOPIC

    def timestamp(self) -> tuple[int, int]:
        return (1, 1_000 + self._values["offset"])

    def value(self) -> bytes:
        return b"%d" % self._values["offset"]

    def __getattr__(self, name: str) -> Any:
        return lambda: self._values[name]


class Client:
    """Gives its messages in order, as many as are asked for."""

    waiting: deque[Message]
    asked: list[int]

    def __init__(self, _config: dict[str, Any]) -> None:
        type(self).waiting, type(self).asked = deque(), []

    def assign(self, _partitions: Any) -> None: ...

    def consume(self, count: int, _timeout_s: float) -> list[Message]:
        self.asked.append(count)
        return [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> LogReader:
    monkeypatch.setattr(consumer, "Consumer", Client)
    monkeypatch.setattr(consumer, "_TOGETHER", 10)
    made = LogReader("nobody:1")
    made.assign({(TOPIC, 0): Position(0), (TOPIC, 1): Position(0)})
    return made


def test_records_without_headers_come_in_one_run_however_the_client_cuts_them(reader: LogReader) -> None:
    Client.waiting.extend(Message(at) for at in range(37))
    (run,) = reader.fetch(30)
    assert isinstance(run, RecordRun)
    assert run.offsets == list(range(30))
    assert run.values == [b"%d" % at for at in range(30)]
    assert run.timestamps_us == [1_000_000 + 1_000 * at for at in range(30)]
    assert (record_count(run), last_offset(run), run.leader_epoch) == (30, 29, 3)
    assert max(Client.asked) <= 10
    (rest,) = reader.fetch(30)
    assert record_count(rest) == 7
    assert run.single(4) == LogRecord(TOPIC, 0, 4, 3, 1_004_000, b"4", [])


def test_a_record_with_headers_ends_its_partitions_run_and_no_others(reader: LogReader) -> None:
    Client.waiting.extend([Message(0), Message(0, partition=1), Message(1, headers=SOME)])
    Client.waiting.extend([Message(2), Message(1, partition=1), Message(3)])
    found = reader.fetch(100)
    seen = {key: [item for item in found if item.partition == key] for key in (0, 1)}
    assert [type(item) for item in seen[0]] == [RecordRun, LogRecord, RecordRun]
    assert [last_offset(item) for item in seen[0]] == [0, 1, 3]
    assert [item.offsets for item in seen[1]] == [[0, 1]]


def test_another_leader_begins_another_run(reader: LogReader) -> None:
    Client.waiting.extend([Message(at, epoch=3) for at in range(10)] + [Message(at, epoch=4) for at in range(10, 15)])
    assert [(item.leader_epoch, record_count(item)) for item in reader.fetch(100)] == [(3, 10), (4, 5)]


@pytest.mark.parametrize("before", [0, 3, 10, 14, 20])
def test_an_error_never_takes_records_with_it(reader: LogReader, before: int) -> None:
    """Raised at once, it would lose what the same call had read already: the client does not give it again."""
    Client.waiting.extend(Message(at) for at in range(before))
    Client.waiting.append(Message(-1, error=KafkaError.REQUEST_TIMED_OUT))
    Client.waiting.extend(Message(at) for at in range(before, 25))
    offsets: list[int] = []
    errors = 0
    while len(offsets) < 25 or not errors:
        try:
            for item in reader.fetch(100):
                assert isinstance(item, RecordRun)
                offsets += item.offsets
        except BrokerUnavailable:
            errors += 1
    assert (offsets, errors) == (list(range(25)), 1)
