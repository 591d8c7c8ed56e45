"""The local broker's configuration files and its choice of ports.

Small on purpose: a few threads and buffers are enough for one machine, and the feeds and writers want the cores.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

# Above Ray's workers (10002-19999), below Linux' range for outgoing connections (32768 and up): there, somebody's
# client socket could sit on our port at the moment when a crashed broker comes back for it.
_PORTS = range(20_000, 32_000)


def choose_port(other_than: int = 0) -> int:
    """Return a free TCP port of 127.0.0.1 that neither Ray nor outgoing connections use."""
    while True:
        port = random.choice(_PORTS)
        if port != other_than and port_is_free(port):
            return port


def port_is_free(port: int) -> bool:
    """Return whether nobody listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        # As Java does: connections of a broker that has died may linger in TIME_WAIT.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def write_configuration(folder: Path, logs: Path, port: int, controller_port: int) -> Path:
    """Write server.properties and log4j2.properties; returns the path of the former.

    Args:
        folder: The broker's folder; its log goes to `log` below it.
        logs: Where kafka.log goes.
        port: For clients.
        controller_port: For KRaft's controller.
    """
    logs.mkdir(parents=True, exist_ok=True)
    properties = folder / "server.properties"
    values = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(folder / "log"),
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
        # After a kill -9 the controller takes the new process only once the old one's session is over: 9 s by default,
        # and 12.6 s until it answered. Much shorter, and a machine at its limit fences its only broker by mistake.
        "broker.session.timeout.ms": "4000",
        "broker.heartbeat.interval.ms": "500",
        "num.network.threads": "2",
        "num.io.threads": "2",
        "background.threads": "2",
        "log.cleaner.threads": "1",
        # The default of 128 MB would be half the heap, to compact topics that we hardly have.
        "log.cleaner.dedupe.buffer.size": "8388608",
        "log.segment.bytes": "268435456",
    }
    properties.write_text("".join(f"{key}={_escape(value)}\n" for key, value in values.items()))
    (folder / "log4j2.properties").write_text(_LOG4J.format(file=_escape(str(logs / "kafka.log"))))
    return properties


def _escape(value: str) -> str:
    """Escape what Java's .properties format gives a meaning to."""
    escaped = value.replace("\\", "\\\\")
    return "".join(character if ord(character) < 128 else f"\\u{ord(character):04x}" for character in escaped)


_LOG4J = """\
status=error
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={file}
appender.file.filePattern={file}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{{ISO8601}} %p %c{{1}} %m%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=3
rootLogger.level=warn
rootLogger.appenderRef.file.ref=file
logger.kafka.name=kafka
logger.kafka.level=info
logger.apache.name=org.apache.kafka
logger.apache.level=warn
"""
