import ssl
from pathlib import Path

import pytest

from k2ray.sim.certificates import CertificateFiles, default_folder, ensure_certificates


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return ensure_certificates(tmp_path_factory.mktemp("ca"))


def shake_hands(files: CertificateFiles, server_file: Path, host: str) -> None:
    """Run a TLS handshake in memory, with the client's checks as strict as they get."""
    trusting = ssl.create_default_context(cafile=files.ca)
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
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


@pytest.mark.parametrize("which", ["other_host", "untrusted"])
def test_wrong_certificates_are_refused(files: CertificateFiles, which: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(files, getattr(files, which), "localhost")


def test_certificates_are_made_once(files: CertificateFiles) -> None:
    before = files.ca.read_bytes(), files.server.read_bytes()
    again = ensure_certificates(files.ca.parent)
    assert (again.ca.read_bytes(), again.server.read_bytes()) == before


def test_private_keys_are_only_their_owners(files: CertificateFiles) -> None:
    assert {file.stat().st_mode & 0o777 for file in files.ca.parent.glob("*.pem")} == {0o600}


def test_the_default_folder_follows_the_xdg_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "k2ray" / "sim"
