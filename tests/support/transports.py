"""What tests of both WebSocket shells share: a sink that remembers, fixtures, and what holds at every end.

A test file takes the fixtures by name: `connect = transports.connect`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from k2ray.errors import SettingsError
from k2ray.feed.transport import Connect, Endpoint, Transport, tls_context, transport_named
from k2ray.sim.certificates import CertificateFiles, ensure_certificates

MAX_BYTES = 100_000


class Recorder:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.pongs: list[bytes] = []
        self.closed: list[str] = []
        self.after_close = 0

    def on_frames(self, frames: list[bytes]) -> None:
        assert all(type(item) is bytes for item in frames)
        self.after_close += bool(self.closed)
        self.frames += frames

    def on_pong(self, payload: bytes) -> None:
        self.pongs.append(payload)

    def on_closed(self, reason: str) -> None:
        self.closed.append(reason)


async def until(look: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.005)


@pytest.fixture(params=["websockets", "picows"])
def connect(request: pytest.FixtureRequest) -> Connect:
    try:
        return transport_named(request.param)
    except SettingsError as error:
        pytest.fail(str(error))  # picows is part of the development extras


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return ensure_certificates(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def endpoint(certificates: CertificateFiles) -> Callable[..., Endpoint]:
    def make(
        port: int, *, timeout_s: float = 10.0, ca: Path | None = certificates.ca, crl: Path | None = None
    ) -> Endpoint:
        url = f"wss://127.0.0.1:{port}/stream?streams=a@trade/b@trade"
        return Endpoint(url, tls_context(ca, crl), timeout_s, MAX_BYTES)

    return make


MakeEndpoint = Callable[..., Endpoint]


async def finish(transport: Transport, sink: Recorder) -> None:
    transport.cut()
    await until(lambda: sink.closed, "the end is reported")
    transport.send_text(b"harmless")
    transport.ping(b"harmless")
    transport.close(1000, "harmless")
    transport.cut()
    await asyncio.sleep(0)
    assert len(sink.closed) == 1, "the end is reported once"
    assert sink.after_close == 0, "the end comes last"
