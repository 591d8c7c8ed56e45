"""The simulator's own certificate authority and server certificates, made on first use and kept in a folder.

Valid under strict X.509 checks too (OpenSSL's `VERIFY_X509_STRICT`, the default from Python 3.13 on):
basic constraints, key usage, subject and authority key identifiers. The private keys are throw-away:
whoever trusts `ca.pem` does so for a simulator on this machine only.
"""

from __future__ import annotations

import datetime
import fcntl
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
SERVER_DAYS = 365
RENEW_DAYS = 7
"""A server certificate this close to its end is made anew, so that a long run does not outlive it."""


@dataclass(frozen=True)
class CertificateFiles:
    """Where the certificates lie. Each server file holds the certificate and its key.

    Attributes:
        ca: What a client trusts.
        server: For localhost, 127.0.0.1 and ::1.
        other_host: Signed by the same CA, but for another host's name.
        untrusted: The right host, signed by a CA that nobody trusts.
    """

    ca: Path
    server: Path
    other_host: Path
    untrusted: Path


def default_folder() -> Path:
    """Return where the certificates live unless told otherwise: `~/.local/share/k2ray/sim`, or below XDG_DATA_HOME."""
    data_home = os.environ.get("XDG_DATA_HOME")
    return (Path(data_home) if data_home else Path.home() / ".local" / "share") / "k2ray" / "sim"


def ensure_certificates(folder: Path) -> CertificateFiles:
    """Return the certificates in `folder`, making what is missing or about to expire. Safe beside other processes."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = CertificateFiles(
        ca=folder / "ca.pem",
        server=folder / "server.pem",
        other_host=folder / "other-host.pem",
        untrusted=folder / "untrusted.pem",
    )
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ca_key_file = folder / "ca-key.pem"
        if not (_fresh(files.ca) and ca_key_file.exists()):
            key, certificate = _make_ca("k2ray simulator CA")
            _write(ca_key_file, _key_pem(key))
            _write(files.ca, _certificate_pem(certificate))
            for stale in (files.server, files.other_host):
                stale.unlink(missing_ok=True)
        ca_key = serialization.load_pem_private_key(ca_key_file.read_bytes(), password=None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
        here = ("localhost", "127.0.0.1", "::1")
        if not _fresh(files.server):
            _write_server(files.server, ca, ca_key, here)
        if not _fresh(files.other_host):
            _write_server(files.other_host, ca, ca_key, ("exchange.invalid",))
        if not _fresh(files.untrusted):
            rogue_key, rogue = _make_ca("a CA that nobody trusts")
            _write_server(files.untrusted, rogue, rogue_key, here)
    return files


def _fresh(file: Path) -> bool:
    """Return whether `file` holds a certificate that is valid for a while yet."""
    if not file.exists():
        return False
    ends = x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    return ends - _now() > datetime.timedelta(days=RENEW_DAYS)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _make_ca(name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(subject, subject, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _write_server(file: Path, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, hosts: Sequence[str]) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    ca_identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(subject, ca.subject, key.public_key(), SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host_name(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_identifier), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    _write(file, _certificate_pem(certificate) + _key_pem(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    start = _now() - datetime.timedelta(hours=1)  # a container's clock may be a little behind ours
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(file: Path, content: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    unfinished = file.with_suffix(".tmp")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(content)
    unfinished.replace(file)
