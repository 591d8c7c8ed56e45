import ssl
from pathlib import Path

import pytest

from k2ray.sim.certificates import CertificateFiles, default_folder, ensure_certificates


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return ensure_certificates(tmp_path_factory.mktemp("ca"))


def shake_hands(files: CertificateFiles, server_file: Path, host: str, *, revocation: bool = False) -> None:
    """Run a TLS handshake in memory, with the client's checks as strict as they get."""
    trusting = ssl.create_default_context(cafile=files.ca)
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    if revocation:
        trusting.load_verify_locations(files.crl)
        trusting.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server_file)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(down, up, server_hostname=host)
    server = serving.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    assert client.version() is not None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_strict_clients_accept_the_server(files: CertificateFiles, host: str) -> None:
    shake_hands(files, files.server, host)


@pytest.mark.parametrize("revocation", [False, True])
def test_clients_that_check_revocation_accept_it_too(files: CertificateFiles, revocation: bool) -> None:
    shake_hands(files, files.server, "localhost", revocation=revocation)


@pytest.mark.parametrize(
    ("which", "why"),
    [
        ("other_host", "Hostname mismatch"),
        ("untrusted", "unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("self_signed", "self-signed certificate"),
    ],
)
def test_each_wrong_certificate_is_refused_for_its_own_reason(files: CertificateFiles, which: str, why: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=why):
        shake_hands(files, getattr(files, which), "localhost")


@pytest.mark.parametrize("which", ["revoked", "revoked_ca"])
def test_what_the_ca_revoked_is_refused_by_those_who_check(files: CertificateFiles, which: str) -> None:
    shake_hands(files, getattr(files, which), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
        shake_hands(files, getattr(files, which), "localhost", revocation=True)


def test_a_folder_of_an_older_version_is_made_anew(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path)
    (tmp_path / "made-by").write_text("1")
    before = files.ca.read_bytes()
    files.crl.unlink()
    ensure_certificates(tmp_path)
    assert files.ca.read_bytes() != before
    shake_hands(files, files.server, "localhost", revocation=True)


def test_a_lost_file_is_made_anew_below_the_same_ca(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path)
    before = files.ca.read_bytes()
    files.expired.unlink()
    ensure_certificates(tmp_path)
    assert files.ca.read_bytes() == before
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(files, files.expired, "localhost")


def test_certificates_are_made_once(files: CertificateFiles) -> None:
    before = files.ca.read_bytes(), files.server.read_bytes()
    again = ensure_certificates(files.ca.parent)
    assert (again.ca.read_bytes(), again.server.read_bytes()) == before


def test_private_keys_are_only_their_owners(files: CertificateFiles) -> None:
    assert {file.stat().st_mode & 0o777 for file in files.ca.parent.glob("*.pem")} == {0o600}


def test_the_default_folder_follows_the_xdg_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "k2ray" / "sim"
