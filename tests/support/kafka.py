"""A real local Kafka for tests: one for the session, a fresh topic prefix a test, and what tests say to it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from k2ray.layout import DataDir
from k2ray.log.broker import LocalBroker
from k2ray.log.consumer import LogReader, LogRecord, Position
from k2ray.log.topics import ensure_topics, table_topics
from k2ray.settings import Kafka, Settings

_numbers = itertools.count(1)


@dataclass(frozen=True)
class TestBroker:
    """A running local broker.

    Attributes:
        bootstrap: Its address; stays the same over restarts.
        broker: For tests that stop it, start it, or look.
    """

    __test__ = False

    bootstrap: str
    broker: LocalBroker

    def prefix(self) -> str:
        """Return a topic prefix that no other test has."""
        return f"t{os.getpid()}_{next(_numbers)}"

    def settings(self, **kafka: object) -> Settings:
        """Return settings with a fresh topic prefix and this broker; keywords go to the `kafka` section."""
        section = {"topic_prefix": self.prefix(), "bootstrap_servers": self.bootstrap, **kafka}
        return Settings(kafka=Kafka.model_validate(section))

    def with_topics(self, **kafka: object) -> tuple[Settings, str]:
        """Return such settings and the trades topic, all topics made."""
        settings = self.settings(**kafka)
        ensure_topics(self.bootstrap, settings)
        return settings, table_topics(settings, "trades")[0]

    def kill(self) -> None:
        """Kill -9 the broker's process; `broker.start()` brings it back."""
        address = self.broker.status(timeout_s=0.1).address
        assert address is not None
        process = psutil.Process(address.pid)
        os.kill(address.pid, signal.SIGKILL)
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(5)


@contextlib.contextmanager
def local_kafka() -> Iterator[TestBroker]:
    """Run a broker in a temporary folder and stop it by its pid."""
    with tempfile.TemporaryDirectory(prefix="k2ray-test-kafka-") as folder:
        broker = LocalBroker(DataDir(Path(folder)))
        try:
            yield TestBroker(broker.start().bootstrap, broker)
        finally:
            broker.stop()


def read_all(bootstrap: str, topic: str, count: int, *, partition: int = 0, timeout_s: float = 20.0) -> list[LogRecord]:
    """Read a partition from its start until `count` records are there, or the broker has no more for `timeout_s`."""
    reader = LogReader(bootstrap)
    try:
        reader.assign({(topic, partition): Position(0)})
        records: list[LogRecord] = []
        while len(records) < count:
            batch = reader.poll(10_000, timeout_s)
            if not batch:
                break
            records += batch
        return records
    finally:
        reader.close()
