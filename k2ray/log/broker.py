"""The local broker: one node of Apache Kafka (KRaft) on 127.0.0.1, its log below the data folder.

`LocalBroker` starts, finds and stops it; the process belongs to nobody's session, so it outlives the command that
started it and Ctrl-C does not reach it. It is found by `broker.json` and recognised by its command line, never by a
process name or a bare pid. Its ports are chosen once and kept, so clients reconnect by themselves after a crash.

Durability: one node writes to the page cache and leaves fsync to the kernel. A kill -9 of the broker loses nothing that
it acknowledged. A power cut may; the writer then finds the log's end below its committed position and says so
(`OffsetLost`). Replicated clusters do not have this hole.

Not its job: fetching the jars (`jars.py`), topics (`topics.py`).
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from confluent_kafka import KafkaException

from k2ray.errors import BrokerUnavailable, OperatorNeeded
from k2ray.layout import DataDir
from k2ray.log.broker_files import choose_port, port_is_free, write_configuration
from k2ray.log.client import admin_client
from k2ray.log.jars import KAFKA_VERSION, Report, fetch_jars, find_java

# A cold JVM needs 2 s here; recovery after a crash reads the newest segments of every partition.
START_TIMEOUT_S = 120.0
# A clean stop takes 1 s; a longer one is stuck, and a killed broker recovers by itself.
STOP_TIMEOUT_S = 20.0
DEFAULT_HEAP_BYTES = 268_435_456
_POLL_S = 0.05
_MAIN_CLASS = "kafka.Kafka"

# Children of this process, kept so that they can be reaped and are not reported as forgotten.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class BrokerAddress:
    """A broker that answers.

    Attributes:
        bootstrap: HOST:PORT for clients.
        pid: Its process.
        controller: HOST:PORT of KRaft's controller; nobody but the broker connects to it.
        cluster_id: Kafka's id of this log, made when the log was formatted.
        version: Apache Kafka's version.
        adopted: Whether it was running already.
    """

    bootstrap: str
    pid: int
    controller: str
    cluster_id: str
    version: str = KAFKA_VERSION
    adopted: bool = False


@dataclass(frozen=True)
class BrokerStatus:
    """What is known of a data folder's broker.

    Attributes:
        state: `running` (answers), `silent` (a process that does not answer) or `stopped`.
        address: Where it is or would be; None before its first start.
        rss_bytes: Memory of its process, 0 without one.
        log_bytes: Size of its log on disk.
    """

    state: str
    address: BrokerAddress | None
    rss_bytes: int = 0
    log_bytes: int = 0


class LocalBroker:
    """The broker of one data folder. Every method may be called from any process; starts and stops take turns.

    Args:
        layout: The data folder.
        heap_bytes: The JVM's heap.
        environ: PATH, HOME, JAVA_HOME and XDG_CACHE_HOME are taken from here; None takes the process's.
        report: Told what takes a while; None is quiet.
    """

    def __init__(
        self,
        layout: DataDir,
        heap_bytes: int = DEFAULT_HEAP_BYTES,
        *,
        environ: Mapping[str, str] | None = None,
        report: Report | None = None,
    ) -> None:
        self._layout = layout
        self._folder = layout.broker.resolve()
        self._heap_bytes = heap_bytes
        self._environ = dict(os.environ if environ is None else environ)
        self._report = report or (lambda _text: None)

    def start(self, timeout_s: float = START_TIMEOUT_S) -> BrokerAddress:
        """Make sure that the broker runs and answers; one that already does is adopted.

        Raises:
            MissingProgram: No java, an old one, or no mvn for the first start. The message names the ways out.
            BrokerUnavailable: It did not come up in time; the message says where its log is.
            TryAgain: Its jars could not be fetched.
            OperatorNeeded: Its own file broker.json cannot be read.
        """
        with self._turn():
            known = self._find()
            # One that was killed a moment ago still looks alive, and then is gone: that is no failed start.
            if known is not None and self._process(known) is not None and self._comes_up(known, timeout_s):
                return dataclasses.replace(known, adopted=True)
            return self._launch(known, timeout_s)

    def status(self, timeout_s: float = 2.0) -> BrokerStatus:
        """Look, without changing anything."""
        known = self._read()
        if known is None:
            return BrokerStatus("stopped", None)
        process = self._process(known)
        if process is None:
            return BrokerStatus("stopped", known, log_bytes=self._log_bytes())
        try:
            rss = process.memory_info().rss
        except psutil.Error:
            rss = 0
        state = "running" if _answers(known.bootstrap, timeout_s) else "silent"
        return BrokerStatus(state, known, rss_bytes=rss, log_bytes=self._log_bytes())

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Stop the broker: SIGTERM, and SIGKILL after `timeout_s`. Returns whether one was running."""
        with self._turn():
            known = self._find()
            process = None if known is None else self._process(known)
            if process is None:
                return False
            for number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, STOP_TIMEOUT_S)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
                if _gone(process, patience_s):
                    return True
                self._report(f"The broker (pid {process.pid}) ignored {number.name} for {patience_s:.0f} s")
            raise BrokerUnavailable(f"the broker's process {process.pid} survived SIGKILL")

    def _launch(self, known: BrokerAddress | None, timeout_s: float) -> BrokerAddress:
        java = find_java(self._environ)
        jars = fetch_jars(self._environ, self._report)
        port, controller = self._ports(known)
        cluster_id = known.cluster_id if known else new_cluster_id()
        properties = write_configuration(self._folder, self._layout.logs, port, controller)
        command = [java, f"-Xmx{self._heap_bytes}", f"-Xms{min(self._heap_bytes, 67_108_864)}", *_JVM]
        command += [f"-XX:ErrorFile={self._folder}/hs_err_%p.log", "-cp", f"{jars}/*"]
        command += [f"-Dlog4j2.configurationFile={self._folder}/log4j2.properties"]
        address = BrokerAddress(f"127.0.0.1:{port}", 0, f"127.0.0.1:{controller}", cluster_id)
        # Written before anything happens, so that a start which dies half way is found by the next one.
        self._write(address)
        self._format(command, properties, cluster_id)
        with (self._folder / "stdout.log").open("wb") as output:
            child = subprocess.Popen(
                [*command, _MAIN_CLASS, str(properties)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environ,
                start_new_session=True,
            )
        _children[child.pid] = child
        _await_command_line(child)
        address = dataclasses.replace(address, pid=child.pid)
        self._write(address)
        if not self._comes_up(address, timeout_s):
            raise BrokerUnavailable(f"the broker ended while starting; {self._where_it_says_why()}")
        return address

    def _ports(self, known: BrokerAddress | None) -> tuple[int, int]:
        """Return the remembered ports; new ones only where somebody else took them meanwhile."""
        if known is not None:
            ports = int(known.bootstrap.rpartition(":")[2]), int(known.controller.rpartition(":")[2])
            if all(port_is_free(port) for port in ports):
                return ports
            self._report(f"Another program has taken port {ports[0]} or {ports[1]}; the broker moves to new ones")
        port = choose_port()
        return port, choose_port(other_than=port)

    def _format(self, command: list[str], properties: Path, cluster_id: str) -> None:
        """Prepare the log's folder, once in its life."""
        if (self._folder / "log" / "meta.properties").exists():
            return
        done = subprocess.run(
            [
                *command,
                "kafka.tools.StorageTool",
                "format",
                "-t",
                cluster_id,
                "-c",
                str(properties),
                "--ignore-formatted",
            ],
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
            env=self._environ,
            cwd=self._folder,
        )
        if done.returncode != 0:
            raise BrokerUnavailable(f"the broker's log could not be formatted: {(done.stdout + done.stderr)[-2000:]}")

    def _comes_up(self, address: BrokerAddress, timeout_s: float) -> bool:
        """Wait until the broker answers; False if its process ended instead."""
        deadline = time.monotonic() + timeout_s
        port = int(address.bootstrap.rpartition(":")[2])
        while time.monotonic() < deadline:
            if self._process(address) is None:
                return False
            # Until something listens, a Kafka client would only fill its log with refused connections.
            if not port_is_free(port) and _answers(address.bootstrap, 2.0):
                return True
            time.sleep(_POLL_S)
        raise BrokerUnavailable(f"the broker did not answer within {timeout_s:.0f} s; {self._where_it_says_why()}")

    def _where_it_says_why(self) -> str:
        with contextlib.suppress(OSError):
            said = (self._folder / "stdout.log").read_text(errors="replace").strip()
            if said:
                return f"it said: {said[-1000:]} (log: {self._layout.logs / 'kafka.log'})"
        return f"its log: {self._layout.logs / 'kafka.log'}"

    def _find(self) -> BrokerAddress | None:
        """Return what broker.json says, corrected where a start died between making the process and noting its pid."""
        known = self._read()
        if known is None or self._process(known) is not None:
            return known
        for process in psutil.process_iter():
            found = dataclasses.replace(known, pid=process.pid)
            if self._process(found) is not None:
                self._write(found)
                return found
        return known

    def _process(self, known: BrokerAddress) -> psutil.Process | None:
        """Return the broker's process if it lives; another process that got its pid is not ours."""
        for pid, child in list(_children.items()):
            if child.poll() is not None:
                del _children[pid]
        try:
            process = psutil.Process(known.pid)
            arguments = process.cmdline()
            ours = _MAIN_CLASS in arguments and str(self._folder / "server.properties") in arguments
            return process if ours and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> BrokerAddress | None:
        file = self._folder / "broker.json"
        try:
            return BrokerAddress(**json.loads(file.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise OperatorNeeded(f"{file} cannot be read ({error}): remove it once no broker runs there") from error

    def _write(self, address: BrokerAddress) -> None:
        part = self._folder / "broker.json.part"
        with part.open("w") as file:
            json.dump(dataclasses.asdict(address), file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(self._folder / "broker.json")

    def _log_bytes(self) -> int:
        total = 0
        for file in (self._folder / "log").rglob("*"):
            with contextlib.suppress(OSError):
                # Blocks, not length: index files are allocated sparsely, 10 MB each.
                total += file.stat().st_blocks * 512
        return total


_JVM = (
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Djava.net.preferIPv4Stack=true",
)


def _answers(bootstrap: str, timeout_s: float) -> bool:
    try:
        return bool(admin_client(bootstrap, {}).list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return False


def _gone(process: psutil.Process, patience_s: float) -> bool:
    child = _children.get(process.pid)
    try:
        if child is not None:
            child.wait(patience_s)
            _children.pop(process.pid, None)
        else:
            process.wait(patience_s)
    except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
        return False
    return True


def _await_command_line(child: subprocess.Popen[bytes], timeout_s: float = 5.0) -> None:
    """Wait until the kernel knows what the process runs: for a moment after its start it has no command line.

    Whoever looked in that moment took the broker for somebody else's process, and its start for a failed one.
    """
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(psutil.Error):
        while not psutil.Process(child.pid).cmdline() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)


def new_cluster_id(draw: Callable[[], uuid.UUID] = uuid.uuid4) -> str:
    """Return a new id in Kafka's form. None begins with a dash: its tools would take one of 64 for an option."""
    while True:
        cluster_id = base64.urlsafe_b64encode(draw().bytes).decode().rstrip("=")
        if not cluster_id.startswith("-"):
            return cluster_id
