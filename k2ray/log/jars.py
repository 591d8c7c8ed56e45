"""Apache Kafka's jars: fetched once through Maven into a cache that all data folders share.

The version is pinned in `kafka_pom.xml`. The jars arrive in a folder beside their place and are renamed into it, under
a lock, so an interrupted or a parallel fetch leaves nothing half done. Not its job: running them (`broker.py`).
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from k2ray.errors import MissingProgram, TryAgain

KAFKA_VERSION = "4.3.1"
MINIMUM_JAVA = 17
POM = Path(__file__).with_name("kafka_pom.xml")

# A slow line takes minutes for 43 MB and Maven's own plugins; past this something hangs.
FETCH_TIMEOUT_S = 900
_COMPLETE = ".complete"
_WAYS_OUT = (
    f"The local Kafka needs java {MINIMUM_JAVA} or newer and, for its first start, mvn. Either install them (Debian: "
    "apt-get install openjdk-17-jre-headless maven), or set kafka.bootstrap_servers (K2RAY_KAFKA__BOOTSTRAP_SERVERS) "
    "to a Kafka that already runs."
)

Report = Callable[[str], None]


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return where the jars of this version live: below XDG_CACHE_HOME, else ~/.cache."""
    given = environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if Path(given).is_absolute() else Path(environ.get("HOME") or Path.home()) / ".cache"
    return base / "k2ray" / f"kafka-{KAFKA_VERSION}"


def find_java(environ: Mapping[str, str]) -> str:
    """Return the java to run: JAVA_HOME's, else the PATH's.

    Raises:
        MissingProgram: None is there, or it is too old for Kafka.
    """
    home = environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else None
    java = java or shutil.which("java", path=environ.get("PATH", ""))
    if java is None:
        raise MissingProgram(f"java was not found. {_WAYS_OUT}")
    try:
        told = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=60, check=False, env=dict(environ)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingProgram(f"{java} does not run ({error}). {_WAYS_OUT}") from error
    found = java_version(told.stderr + told.stdout)
    if found is None:
        raise MissingProgram(f"{java} does not say its version ({told.stderr.strip()[:200]!r}). {_WAYS_OUT}")
    if found < MINIMUM_JAVA:
        raise MissingProgram(
            f"{java} is too old: version {found}, Kafka {KAFKA_VERSION} needs {MINIMUM_JAVA}. {_WAYS_OUT}"
        )
    return java


def java_version(text: str) -> int | None:
    """Return the major version that `java -version` printed: 17 of `17.0.15`, 8 of `1.8.0_292`."""
    match = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    if match is None:
        return None
    major = int(match[1])
    return int(match[2]) if major == 1 and match[2] else major


def fetch_jars(environ: Mapping[str, str], report: Report) -> Path:
    """Return the folder of Kafka's jars, fetched from Maven Central if this machine never did.

    Args:
        environ: For PATH, HOME and XDG_CACHE_HOME.
        report: Told what is going on when that takes a while.

    Raises:
        MissingProgram: The jars are not there, and mvn neither.
        TryAgain: Maven could not fetch them; the message holds what it said.
    """
    folder = cache_folder(environ)
    if (folder / _COMPLETE).exists():
        return folder
    maven = shutil.which("mvn", path=environ.get("PATH", ""))
    if maven is None:
        raise MissingProgram(f"mvn was not found, and Kafka {KAFKA_VERSION} is not in {folder} yet. {_WAYS_OUT}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("Another k2ray is fetching Apache Kafka; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _COMPLETE).exists():
            _fetch(maven, folder, environ, report)
    return folder


def _fetch(maven: str, folder: Path, environ: Mapping[str, str], report: Report) -> None:
    report(f"Fetching Apache Kafka {KAFKA_VERSION} from Maven Central (43 MB, once) into {folder}")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.fetching-") as work:
        # Maven writes beside its pom, so it gets a copy; the package may be installed read-only.
        shutil.copy(POM, Path(work) / "pom.xml")
        command = [maven, "-q", "-B", "-f", f"{work}/pom.xml", "dependency:copy-dependencies"]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={work}/jars"]
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
            raise TryAgain(f"mvn did not fetch Kafka within {FETCH_TIMEOUT_S} s") from error
        jars = Path(work) / "jars"
        if done.returncode != 0 or not any(jars.glob("kafka_*.jar")):
            said = (done.stdout + done.stderr).strip()[-2000:]
            raise TryAgain(f"mvn could not fetch Kafka (exit status {done.returncode}):\n{said}")
        (jars / _COMPLETE).touch()
        if folder.exists():
            shutil.rmtree(folder)
        jars.rename(folder)
