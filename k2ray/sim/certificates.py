"""The simulator's own certificate authority and server certificates, made on first use and kept in a folder.

The good one and a wrong one for each way to be wrong, for clients that must refuse it. The private keys are
throw-away: whoever trusts `ca.pem` does so for a simulator on this machine only. `authority.py` makes them.
"""

from __future__ import annotations

import datetime
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from k2ray.sim.authority import Authority, make_authority, make_crl, make_server, now

RENEW_DAYS = 7
"""A certificate this close to its end is made anew, so that a long run does not outlive it."""

LAYOUT = "2"
"""Which set of files this version makes; others are made anew."""

HERE = ("localhost", "127.0.0.1", "::1")
_DATED = ("ca", "server", "crl", "other_host", "untrusted", "self_signed", "revoked", "revoked_ca")


@dataclass(frozen=True)
class CertificateFiles:
    """Where the certificates lie. Each server file holds the certificate and its key.

    Attributes:
        ca: What a client trusts.
        server: For localhost, 127.0.0.1 and ::1.
        crl: What the CA, and the intermediate one below it, have revoked; for clients that check it.
        other_host: Signed by the same CA, but for another host's name.
        untrusted: The right host, signed by a CA that nobody trusts.
        expired: The right host and CA, but its time is over.
        self_signed: The right host, signed by itself.
        revoked: The right host and CA, and on the CA's revocation list.
        revoked_ca: The right host, signed by an intermediate CA (in the file too) that the CA has revoked.
    """

    ca: Path
    server: Path
    crl: Path
    other_host: Path
    untrusted: Path
    expired: Path
    self_signed: Path
    revoked: Path
    revoked_ca: Path


def default_folder() -> Path:
    """Return where the certificates live unless told otherwise: `~/.local/share/k2ray/sim`, or below XDG_DATA_HOME."""
    data_home = os.environ.get("XDG_DATA_HOME")
    return (Path(data_home) if data_home else Path.home() / ".local" / "share") / "k2ray" / "sim"


def ensure_certificates(folder: Path) -> CertificateFiles:
    """Return the certificates in `folder`, making what is missing or about to expire. Safe beside other processes."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    names = {name: name.replace("_", "-") for name in CertificateFiles.__dataclass_fields__}
    files = CertificateFiles(**{name: folder / f"{stem}.pem" for name, stem in names.items()})
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        marker = folder / "made-by"
        known = marker.read_text() if marker.exists() else ""
        if known != LAYOUT or not (files.expired.exists() and all(_fresh(getattr(files, name)) for name in _DATED)):
            # All or nothing: a CA goes with what it signed and revoked.
            _make_all(files, keep_ca=known == LAYOUT and _fresh(files.ca))
            marker.write_text(LAYOUT)
    return files


def _make_all(files: CertificateFiles, *, keep_ca: bool) -> None:
    ca_key_file = files.ca.with_name("ca-key.pem")
    if keep_ca and ca_key_file.exists():
        loaded = serialization.load_pem_private_key(ca_key_file.read_bytes(), password=None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        root = Authority(loaded, x509.load_pem_x509_certificate(files.ca.read_bytes()))
    else:
        root = make_authority("k2ray simulator CA")
        _write(ca_key_file, _key_pem(root.key))
        _write(files.ca, _pem(root.certificate))
    _write(files.server, make_server(root, HERE).pem)
    _write(files.other_host, make_server(root, ("exchange.invalid",)).pem)
    _write(files.untrusted, make_server(make_authority("a CA that nobody trusts"), HERE).pem)
    _write(files.expired, make_server(root, HERE, ended=True).pem)
    _write(files.self_signed, make_server(None, HERE).pem)
    revoked = make_server(root, HERE)
    _write(files.revoked, revoked.pem)
    middle = make_authority("k2ray simulator intermediate CA", root)
    _write(files.revoked_ca, make_server(middle, HERE).pem + _pem(middle.certificate))
    lists = [make_crl(root, [revoked.certificate, middle.certificate]), make_crl(middle, [])]
    _write(files.crl, b"".join(one.public_bytes(serialization.Encoding.PEM) for one in lists))


def _fresh(file: Path) -> bool:
    """Return whether `file` holds a certificate or a revocation list that is valid for a while yet."""
    if not file.exists():
        return False
    content = file.read_bytes()
    if b"BEGIN X509 CRL" in content:
        ends = x509.load_pem_x509_crl(content).next_update_utc
    else:
        ends = x509.load_pem_x509_certificate(content).not_valid_after_utc
    return ends is not None and ends - now() > datetime.timedelta(days=RENEW_DAYS)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(file: Path, content: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    unfinished = file.with_suffix(".tmp")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(content)
    unfinished.replace(file)
