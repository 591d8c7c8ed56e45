"""One conformance suite for both WebSocket shells, against a real TLS server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from k2ray.errors import ExchangeUnavailable, SettingsError
from k2ray.feed.transport import Connect, Endpoint, Transport, tls_context, transport_named
from k2ray.sim.certificates import CertificateFiles, ensure_certificates
from tests.support.tls_peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Peer, closing, frame, serve

pytestmark = pytest.mark.integration

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
    def make(port: int, *, timeout_s: float = 10.0, ca: Path | None = certificates.ca) -> Endpoint:
        return Endpoint(f"wss://127.0.0.1:{port}/stream?streams=a@trade/b@trade", tls_context(ca), timeout_s, MAX_BYTES)

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


async def test_messages_of_all_sizes_and_kinds_arrive_whole(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    sizes = [0, 1, 125, 126, 127, 65_535, 65_536, MAX_BYTES]
    sent = [bytes([65 + at]) * size for at, size in enumerate(sizes)] + ["žluťoučký".encode()]

    async def script(peer: Peer) -> None:
        await peer.accept(frame(b"with the handshake"))
        for payload in sent:
            await peer.send(frame(payload))
        await peer.send(frame(b"\x00\xff\x80", BINARY))
        await peer.read_until_end()

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        transport = await connect(endpoint(served.port), sink)
        await until(lambda: len(sink.frames) == len(sent) + 2, "all messages arrive")
        assert sink.frames == [b"with the handshake", *sent, b"\x00\xff\x80"]
        assert served.peers[0].head.startswith(b"GET /stream?streams=a@trade/b@trade HTTP/1.1\r\n")
        assert b"permessage-deflate" not in served.peers[0].head
        await finish(transport, sink)


async def test_messages_cut_anywhere_by_the_network_arrive_whole(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    sent = [str(number).encode() * (number % 90) for number in range(400)]
    stream = b"".join(frame(payload) for payload in sent)

    async def script(peer: Peer) -> None:
        await peer.accept()
        at, size = 0, 1
        while at < len(stream):
            await peer.send(stream[at : at + size])
            at, size = at + size, size % 1_999 + 61
        await peer.read_until_end()

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        transport = await connect(endpoint(served.port), sink)
        await until(lambda: len(sink.frames) == len(sent), "all messages arrive")
        assert sink.frames == sent
        await finish(transport, sink)


async def test_fragments_are_put_together_around_control_frames(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(frame(b"before") + frame(b"one ", fin=False))
        await peer.send(frame(b"?", PING) + frame(b"two ", CONTINUATION, fin=False))
        await peer.send(frame(b"three", CONTINUATION) + frame(b"after"))
        await peer.read_until_end()

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        transport = await connect(endpoint(served.port), sink)
        await until(lambda: len(sink.frames) == 3, "all messages arrive")
        assert sink.frames == [b"before", b"one two three", b"after"]
        await until(lambda: (PONG, b"?") in served.peers[0].received, "the ping is answered")
        await finish(transport, sink)


async def test_a_ping_is_answered_with_its_payload_and_ends_no_read_early(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(frame(b"data") + frame(b"payload 42", PING))
        assert await peer.read_frame() == (PONG, b"payload 42")
        await peer.send(frame(b"answered"))
        await peer.read_until_end()

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        transport = await connect(endpoint(served.port), sink)
        await until(lambda: sink.frames == [b"data", b"answered"], "data before and after the ping")
        await finish(transport, sink)


async def test_our_ping_and_text_reach_the_peer_and_its_pong_reaches_us(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    """Trap 7: the heartbeat died at its first ping."""

    async def script(peer: Peer) -> None:
        await peer.accept()
        assert await peer.read_frame() == (TEXT, b'{"method":"SUBSCRIBE"}')
        kind, payload = await peer.read_frame()
        assert kind == PING
        await peer.send(frame(payload, PONG))
        await peer.read_until_end()

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        transport = await connect(endpoint(served.port), sink)
        transport.send_text(b'{"method":"SUBSCRIBE"}')
        transport.ping(b"17")
        await until(lambda: sink.pongs == [b"17"], "the pong arrives")
        await finish(transport, sink)


async def test_the_peers_close_is_answered_and_its_code_reported(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(frame(b"last words") + closing(1001, "going away"))
        kind, payload = await peer.read_frame()
        assert (kind, payload[:2]) == (CLOSE, (1001).to_bytes(2, "big"))

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        transport = await connect(endpoint(served.port), sink)
        await until(lambda: sink.closed, "the end is reported")
        assert sink.frames == [b"last words"]
        assert "1001" in sink.closed[0]
        await finish(transport, sink)


async def test_our_close_sends_its_code_and_ends(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        kind, payload = await peer.read_frame()
        assert (kind, payload[:2]) == (CLOSE, (1000).to_bytes(2, "big"))
        await peer.send(frame(b"on its way already") + closing(1000))

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        transport = await connect(endpoint(served.port), sink)
        transport.close(1000, "")
        await until(lambda: sink.closed, "the end is reported")
        assert sink.frames == [b"on its way already"]
        await finish(transport, sink)


async def test_a_peer_that_ignores_our_close_is_cut(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await asyncio.sleep(60)

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        transport = await connect(endpoint(served.port), sink)
        transport.close(1000, "")
        await until(lambda: sink.closed, "the end is reported")
        await finish(transport, sink)


@pytest.mark.parametrize("fragmented", [False, True])
async def test_an_oversized_message_closes_with_1009(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles, fragmented: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept(frame(b"fine"))
        if fragmented:
            await peer.send(frame(b"x" * 60_000, fin=False) + frame(b"x" * 60_000, CONTINUATION))
        else:
            await peer.send(frame(b"x" * (MAX_BYTES + 1)))
        kind, payload = await peer.read_frame()
        assert (kind, payload[:2]) == (CLOSE, (1009).to_bytes(2, "big"))

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        transport = await connect(endpoint(served.port), sink)
        await until(lambda: sink.closed, "the end is reported")
        assert sink.frames == [b"fine"]
        await finish(transport, sink)


@pytest.mark.parametrize(
    "nonsense",
    [frame(b"x", 3), b"\xc1\x01x", b"\x81\x81abcdx", frame(b"x", CONTINUATION), frame(b"a", fin=False) + frame(b"b")],
    ids=["unknown opcode", "reserved bit", "masked by the server", "stray continuation", "text within fragments"],
)
async def test_a_protocol_error_ends_the_connection(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles, nonsense: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(nonsense)
        assert (await peer.read_frame())[0] == CLOSE

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        transport = await connect(endpoint(served.port), sink)
        await until(lambda: sink.closed, "the end is reported")
        assert sink.frames == []
        await finish(transport, sink)


async def test_an_abrupt_end_is_reported_after_what_arrived(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(frame(b"whole") + frame(b"cut off")[:5])
        await peer.read_frame()
        peer.writer.transport.abort()

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        transport = await connect(endpoint(served.port), sink)
        await until(lambda: sink.frames, "the whole message arrives")
        transport.send_text(b"now")
        await until(lambda: sink.closed, "the end is reported")
        assert sink.frames == [b"whole"]
        assert sink.closed[0]
        await finish(transport, sink)


async def test_a_half_open_peer_is_silent_until_it_is_cut(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    """Trap 7: a heartbeat is tested against a peer that stops answering."""
    stop = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.accept(frame(b"alive"))
        await stop.wait()

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        transport = await connect(endpoint(served.port), sink)
        await until(lambda: sink.frames, "the first message arrives")
        transport.ping(b"?")
        await asyncio.sleep(0.1)
        assert (sink.pongs, sink.closed) == ([], [])
        await finish(transport, sink)
        stop.set()


@pytest.mark.parametrize(("which", "reason"), [("untrusted", "issuer"), ("other_host", "mismatch|not valid for")])
async def test_a_wrong_certificate_is_refused_and_named(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles, which: str, reason: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()

    async with serve(getattr(certificates, which), script) as served:
        with pytest.raises(ExchangeUnavailable, match=f"certificate is not trusted.*({reason})"):
            await connect(endpoint(served.port), Recorder())


async def test_the_systems_cas_do_not_trust_a_private_one(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()

    async with serve(certificates.server, script) as served:
        with pytest.raises(ExchangeUnavailable, match="certificate is not trusted"):
            await connect(endpoint(served.port, ca=None), Recorder())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope", "403"),
        (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n", "429"),
        (b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "302"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "handshake"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "handshake"),
        (b"", "handshake"),
    ],
    ids=["403", "429", "redirect", "no accept key", "no HTTP", "nothing"],
)
async def test_a_refused_handshake_says_why(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles, answer: bytes, reason: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(answer)

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        with pytest.raises(ExchangeUnavailable, match=reason):
            await connect(endpoint(served.port), sink)
        assert sink.closed == []


async def test_a_handshake_that_never_ends_times_out_and_leaves_nothing_open(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.reader.read()
        gone.set()

    async with serve(certificates.server, script) as served:
        with pytest.raises(ExchangeUnavailable, match="timed out"):
            await connect(endpoint(served.port, timeout_s=0.5), Recorder())
        async with asyncio.timeout(10):
            await gone.wait()


async def test_a_cancelled_connect_leaves_nothing_open(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    there, gone = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        there.set()
        await peer.reader.read()
        gone.set()

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        task = asyncio.ensure_future(connect(endpoint(served.port), sink))
        async with asyncio.timeout(10):
            await there.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gone.wait()
        assert sink.closed == []


async def test_nobody_listening_is_a_refused_connection(
    connect: Connect, endpoint: MakeEndpoint, free_port: Callable[[], int]
) -> None:
    with pytest.raises(ExchangeUnavailable, match="refused"):
        await connect(endpoint(free_port()), Recorder())


def test_a_ca_file_that_is_none_stops_the_start(tmp_path: Path) -> None:
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate")
    with pytest.raises(SettingsError, match=r"tls\.ca_file"):
        tls_context(wrong)
    with pytest.raises(SettingsError, match=r"tls\.ca_file"):
        tls_context(tmp_path / "missing.pem")
