"""Open WebSockets: one conformance suite for both shells, against a real TLS server that misbehaves on purpose."""

from __future__ import annotations

import asyncio

import pytest

from k2ray.feed.transport import Connect
from k2ray.sim.certificates import CertificateFiles
from tests.support import transports
from tests.support.tls_peer import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Peer, closing, frame, serve
from tests.support.transports import MAX_BYTES, MakeEndpoint, Recorder, finish, until

pytestmark = pytest.mark.integration

connect, certificates, endpoint = transports.connect, transports.certificates, transports.endpoint


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


async def test_the_heartbeat_died_at_its_first_ping(
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
