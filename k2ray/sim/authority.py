"""X.509 for the simulator: a CA, certificates that it signed, and what it revoked.

Valid under strict X.509 checks too (OpenSSL's `VERIFY_X509_STRICT`, the default from Python 3.13 on): basic
constraints, key usage, subject and authority key identifiers. Which files they go to is `certificates.py`'s.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
SERVER_DAYS = 365
EXPIRED_DAYS = 30
"""How long an expired certificate has been over."""


@dataclass(frozen=True)
class Authority:
    """A key and its certificate: a CA or a server."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        """Return certificate and key, as a server loads them."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self.certificate.public_bytes(serialization.Encoding.PEM) + key


def now() -> datetime.datetime:
    """Return the time in UTC."""
    return datetime.datetime.now(datetime.UTC)


def make_authority(name: str, above: Authority | None = None) -> Authority:
    """Make a CA.

    Args:
        name: Its common name.
        above: The CA that signs it; None: itself.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    issuer = above.certificate.subject if above is not None else subject
    certificate = (
        _builder(subject, issuer, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0 if above is not None else 1), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_identifier_of(above, key), critical=False)
        .sign(above.key if above is not None else key, hashes.SHA256())
    )
    return Authority(key, certificate)


def make_server(ca: Authority | None, hosts: Sequence[str], *, ended: bool = False) -> Authority:
    """Make a server's certificate.

    Args:
        ca: Who signs it; None: itself.
        hosts: Names and addresses that it is for.
        ended: Whether its time is over already.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(hosts[0])
    issuer = ca.certificate.subject if ca is not None else subject
    days_ago = SERVER_DAYS + EXPIRED_DAYS if ended else 0
    certificate = (
        _builder(subject, issuer, key.public_key(), SERVER_DAYS, days_ago)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host_name(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_identifier_of(ca, key), critical=False)
        .sign(ca.key if ca is not None else key, hashes.SHA256())
    )
    return Authority(key, certificate)


def make_crl(ca: Authority, revoked: Sequence[x509.Certificate]) -> x509.CertificateRevocationList:
    """Make a CA's list of what it revoked."""
    since = now() - datetime.timedelta(hours=1)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(since)
        .next_update(since + datetime.timedelta(days=SERVER_DAYS))
        .add_extension(_identifier_of(ca, ca.key), critical=False)
        .add_extension(x509.CRLNumber(1), critical=False)
    )
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(since)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(ca.key, hashes.SHA256())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _identifier_of(ca: Authority | None, own: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    if ca is None:
        identifier = x509.SubjectKeyIdentifier.from_public_key(own.public_key())
    else:
        identifier = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int, days_ago: int = 0
) -> x509.CertificateBuilder:
    # An hour back: a container's clock may be a little behind ours.
    start = now() - datetime.timedelta(hours=1, days=days_ago)
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
