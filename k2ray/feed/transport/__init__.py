"""The small interface that both WebSocket shells stand behind: bytes in and out, verified TLS, no decisions.

`websockets_protocol.py` (default) and `picows.py` (fast) implement it; each is the only importer of its library, and
one conformance suite runs against both. Compression is never negotiated: it costs more CPU than the feed has.

A shell answers the peer's pings by itself, puts fragmented messages together, and closes with 1009 on a message above
`max_frame_bytes`.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from k2ray.errors import ExchangeUnavailable, SettingsError, TooOften
from k2ray.exchanges.retry_after import retry_after_s

TOO_OFTEN = frozenset({429, 418})
"""HTTP statuses with which an exchange says that this address asks too often; 418: and that it is banned for it."""

LATER_S = 60.0
"""How long to stay away if it does not say."""


def refused(message: str, status: int, retry_after: str | None, date: str | None = None) -> ExchangeUnavailable:
    """Return the error of a request that was answered with this status.

    Args:
        message: What was asked and what came.
        status: HTTP status.
        retry_after: That header, if there was one.
        date: That header: what the exchange's clock says.
    """
    if status not in TOO_OFTEN:
        return ExchangeUnavailable(message)
    asked_s = retry_after_s(retry_after, date)
    return TooOften(message, LATER_S if asked_s is None else asked_s)


@dataclass(frozen=True)
class Endpoint:
    """Where to connect and within what limits.

    Attributes:
        url: wss:// only.
        tls: From `tls_context`.
        connect_timeout_s: For TCP, TLS and the WebSocket handshake together.
        max_frame_bytes: A larger message closes the connection.
    """

    url: str
    tls: ssl.SSLContext
    connect_timeout_s: float
    max_frame_bytes: int


class Sink(Protocol):
    """What a shell reports to; called in the event loop's thread."""

    def on_frames(self, frames: list[bytes]) -> None:
        """Take the payloads of the whole data messages of one read, text or binary alike."""

    def on_pong(self, payload: bytes) -> None:
        """Note that the peer answered a ping."""

    def on_closed(self, reason: str) -> None:
        """Note that the socket is gone; called exactly once for each successful connect, and last."""


class Transport(Protocol):
    """An open WebSocket. All calls return at once and are harmless after the close."""

    def send_text(self, text: bytes) -> None:
        """Send a text message."""

    def ping(self, payload: bytes) -> None:
        """Send a ping."""

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake; a peer that does not finish it within a few seconds is cut."""

    def cut(self) -> None:
        """Drop the connection without waiting for the peer."""


Connect = Callable[[Endpoint, Sink], Awaitable[Transport]]
"""Open a WebSocket. Raises ExchangeUnavailable with the reason; nothing stays open then. Cancelling it is safe."""


_REFUSALS = {
    3: "tls.crl_file holds no revocation list of the CA that signed it",
    9: "it is not valid yet",
    10: "it has expired",
    12: "the revocation list of its CA has expired, renew tls.crl_file",
    18: "it is self-signed",
    19: "a CA signed it that is not trusted (tls.ca_file)",
    20: "a CA signed it that is not trusted (tls.ca_file)",
    21: "a CA signed it that is not trusted (tls.ca_file)",
    23: "it, or the CA that signed it, was revoked",
    62: "it is for another host",
    64: "it is for another host",
}
"""OpenSSL's verification results (X509_V_ERR_*) in our words."""


def tls_context(ca_file: Path | None, crl_file: Path | None = None) -> ssl.SSLContext:
    """Return the context for every connection: TLS 1.2 or newer, certificate and hostname checked, always.

    Args:
        ca_file: PEM file of CAs to trust instead of the system's.
        crl_file: PEM file of revocation lists; with it the whole chain is checked, so each CA in it must have one.

    Raises:
        SettingsError: A file cannot be read as what it should be; the start stops.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"tls.ca_file: cannot read {ca_file} as PEM certificates: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if crl_file is not None:
        known = context.cert_store_stats()["crl"]
        try:
            context.load_verify_locations(cafile=str(crl_file))
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"tls.crl_file: cannot read {crl_file} as PEM revocation lists: {error}") from None
        if context.cert_store_stats()["crl"] == known:
            raise SettingsError(f"tls.crl_file: {crl_file} holds no revocation list")
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
    return context


def explain(error: BaseException) -> str:
    """Return why a connection failed, in words that name the remedy where there is one."""
    if isinstance(error, ssl.SSLCertVerificationError):
        which = _REFUSALS.get(error.verify_code, error.verify_message)
        return f"the certificate is refused: {which}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved: {error.strerror}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return "connection reset by the peer"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def transport_named(name: str) -> Connect:
    """Return the `connect` of a transport by its name in the settings.

    Raises:
        SettingsError: The extra that it needs is not installed.
    """
    if name == "picows":
        try:
            from k2ray.feed.transport import picows
        except ImportError:
            raise SettingsError("feed.transport: picows is not installed: pip install 'k2ray[picows]'") from None
        return picows.connect
    from k2ray.feed.transport import websockets_protocol

    return websockets_protocol.connect
