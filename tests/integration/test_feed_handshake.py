"""Opening a WebSocket, both shells, against a real TLS server: certificates, handshakes, time limits, cancellation."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from k2ray.errors import ExchangeUnavailable, SettingsError, TooOften
from k2ray.feed.transport import LATER_S, Connect, tls_context
from k2ray.sim.certificates import CertificateFiles, ensure_certificates
from tests.support import transports
from tests.support.tls_peer import Peer, serve
from tests.support.transports import MakeEndpoint, Recorder

pytestmark = pytest.mark.integration

connect, certificates, endpoint = transports.connect, transports.certificates, transports.endpoint


@pytest.mark.parametrize(
    ("which", "reason"),
    [
        ("expired", "it has expired"),
        ("self_signed", "it is self-signed"),
        ("other_host", "it is for another host"),
        ("untrusted", "a CA signed it that is not trusted"),
        ("revoked", "it, or the CA that signed it, was revoked"),
        ("revoked_ca", "it, or the CA that signed it, was revoked"),
    ],
)
async def test_a_wrong_certificate_is_refused_with_the_reason(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles, which: str, reason: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()

    async with serve(getattr(certificates, which), script) as served:
        with pytest.raises(ExchangeUnavailable, match=f"the certificate is refused: {reason}"):
            await connect(endpoint(served.port, crl=certificates.crl), Recorder())
        assert all(peer.head == b"" for peer in served.peers), "nothing was said to a peer that may be anybody"


async def test_a_good_certificate_passes_the_revocation_lists(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.read_until_end()

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        await transports.finish(await connect(endpoint(served.port, crl=certificates.crl), sink), sink)


async def test_a_ca_without_a_revocation_list_is_refused_and_the_setting_named(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles, tmp_path: Path
) -> None:
    """Lists of another CA say nothing about this one: not checked is not good."""
    other = ensure_certificates(tmp_path / "another CA")

    async def script(peer: Peer) -> None:
        await peer.accept()

    async with serve(certificates.server, script) as served:
        with pytest.raises(ExchangeUnavailable, match=r"tls\.crl_file holds no revocation list of the CA"):
            await connect(endpoint(served.port, crl=other.crl), Recorder())


async def test_the_systems_cas_do_not_trust_a_private_one(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()

    async with serve(certificates.server, script) as served:
        with pytest.raises(ExchangeUnavailable, match="the certificate is refused"):
            await connect(endpoint(served.port, ca=None), Recorder())


async def test_without_a_ca_file_the_systems_cas_are_trusted(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))  # where OpenSSL takes the system's from

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.read_until_end()

    async with serve(certificates.server, script) as served:
        sink = Recorder()
        await transports.finish(await connect(endpoint(served.port, ca=None), sink), sink)


@pytest.mark.filterwarnings("ignore:.*TLSv1_1:DeprecationWarning")
async def test_a_server_that_knows_nothing_newer_than_tls_1_1_is_refused(
    connect: Connect, endpoint: MakeEndpoint, certificates: CertificateFiles
) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read()

    lenient = ssl.create_default_context(cafile=certificates.ca)
    lenient.set_ciphers("ALL:@SECLEVEL=0")
    lenient.minimum_version = ssl.TLSVersion.TLSv1_1
    async with serve(certificates.server, script, newest=ssl.TLSVersion.TLSv1_1) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=lenient)
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.1", "it does speak that"
        writer.transport.abort()
        with pytest.raises(ExchangeUnavailable):
            await connect(endpoint(served.port), Recorder())
        assert len(served.peers) == 1, "only the lenient one was let in"


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


@pytest.mark.parametrize(("header", "after_s"), [(b"Retry-After: 17\r\n", 17.0), (b"", LATER_S)])
@pytest.mark.parametrize("status", [b"429 Too Many Requests", b"418 I'm a teapot"])
async def test_an_exchange_that_is_asked_too_often_says_for_how_long_to_stay_away(
    connect: Connect,
    endpoint: MakeEndpoint,
    certificates: CertificateFiles,
    status: bytes,
    header: bytes,
    after_s: float,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 " + status + b"\r\n" + header + b"Content-Length: 0\r\n\r\n")

    async with serve(certificates.server, script) as served:
        with pytest.raises(TooOften, match=status[:3].decode()) as caught:
            await connect(endpoint(served.port), Recorder())
    assert caught.value.after_s == after_s


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


def test_a_crl_file_that_is_none_stops_the_start(certificates: CertificateFiles, tmp_path: Path) -> None:
    wrong = tmp_path / "crl.pem"
    wrong.write_text("no list")
    for file in (wrong, tmp_path / "missing.pem", certificates.ca):
        with pytest.raises(SettingsError, match=r"tls\.crl_file"):
            tls_context(certificates.ca, file)


def test_nothing_below_tls_1_2_and_nothing_unverified(certificates: CertificateFiles) -> None:
    context = tls_context(certificates.ca)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
