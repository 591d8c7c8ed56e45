"""Fixtures that all tests share: what a machine lacks is a visible skip, and a failure where everything is required."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from k2ray.errors import MissingProgram
from tests.support.kafka import TestBroker, local_kafka
from tests.support.moved import MetricWatch
from tests.support.ports import find_free_port
from tests.support.prometheus import LackingPrometheus, Programs, find_programs
from tests.support.ray_cluster import SmallCluster, prepare_environment, small_cluster

prepare_environment()


def pytest_configure(config: pytest.Config) -> None:
    """Watch which metrics move."""
    watch = MetricWatch()
    watch.install()
    config.pluginmanager.register(watch)


def lacking(reason: str) -> None:
    """Skip with `reason`; under K2TEST_REQUIRE_ALL=1 fail instead."""
    if os.environ.get("K2TEST_REQUIRE_ALL") == "1":
        pytest.fail(f"K2TEST_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Return `ports.find_free_port`."""
    return find_free_port


@pytest.fixture(scope="session")
def ray() -> Iterator[SmallCluster]:
    """One small Ray cluster for the whole session; this process is its driver."""
    with small_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def broker() -> Iterator[TestBroker]:
    """One real local Kafka for the whole session. `broker.settings()` gives a test topics of its own."""
    with contextlib.ExitStack() as stack:
        try:
            kafka = stack.enter_context(local_kafka())
        except MissingProgram as missing:
            lacking(str(missing))
        yield kafka


@pytest.fixture(scope="session")
def prometheus_programs() -> Programs:
    """Prometheus and promtool, fetched if need be."""
    try:
        return find_programs()
    except LackingPrometheus as missing:
        lacking(str(missing))
        raise
