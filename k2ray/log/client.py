"""What all our Kafka clients share: quiet logs, and librdkafka's errors mapped to k2ray's.

confluent-kafka prints a line per refused connection unless it is given a logger; ours writes to the process's own log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from k2ray.errors import BrokerUnavailable, K2rayError, OperatorNeeded
from k2ray.settings import Kafka

# Below the `k2ray` logger, so it goes where that goes; without configured logs a NullHandler keeps the terminal clean.
LIBRARY_LOG = logging.getLogger("k2ray.librdkafka")
LIBRARY_LOG.addHandler(logging.NullHandler())
LIBRARY_LOG.setLevel(logging.ERROR)

_NEEDS_A_PERSON = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._AUTHENTICATION,  # noqa: SLF001 - the library names its local errors so
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - the library names its local errors so
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001 - the library names its local errors so
    KafkaError._SSL,  # noqa: SLF001 - the library names its local errors so
}


def client_config(
    bootstrap: str, options: Mapping[str, str], error_cb: Callable[[KafkaError], None] | None = None
) -> dict[str, Any]:
    """Return the configuration that every client starts from: address, quick reconnects, quiet, then the user's.

    Args:
        bootstrap: HOST:PORT[,HOST:PORT].
        options: `kafka.options` of the settings; they win.
        error_cb: Called (from the client's poll) when brokers come and go; nothing is lost by ignoring it.
    """
    return {
        "bootstrap.servers": bootstrap,
        "socket.keepalive.enable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "error_cb": error_cb or _ignore,
        "logger": LIBRARY_LOG,
        **options,
    }


def producer_config(bootstrap: str, client_id: str, kafka: Kafka, largest_record: int) -> dict[str, Any]:
    """Return the configuration of our producers: idempotent, acknowledged by all replicas, queued within bounds.

    Args:
        bootstrap: HOST:PORT[,HOST:PORT].
        client_id: Name in the broker's log and metrics.
        kafka: Compression, queue size, delivery timeout; its options win.
        largest_record: Bytes.
    """
    return {
        **client_config(bootstrap, {}),
        "client.id": client_id,
        "enable.idempotence": True,
        "acks": "all",
        "compression.type": kafka.compression,
        # Feeds have gathered their rows already; this only joins what several partitions send at once.
        "linger.ms": 5,
        "delivery.timeout.ms": max(1000, round(kafka.delivery_timeout_s * 1000)),
        "message.max.bytes": largest_record,
        "batch.size": 1_000_000,
        # Our own count decides; the client's limit only stands behind it.
        "queue.buffering.max.kbytes": kafka.queue_max_bytes // 1024 + 65_536,
        "queue.buffering.max.messages": 1_000_000,
        "retry.backoff.max.ms": 1000,
        **kafka.options,
    }


def admin_client(bootstrap: str, options: Mapping[str, str]) -> AdminClient:
    """Return a client for questions about cluster and topics."""
    return AdminClient(client_config(bootstrap, options))


def map_error(error: KafkaException, doing: str) -> K2rayError:
    """Return what a Kafka error means to the caller, as an exception to raise.

    Args:
        error: What confluent-kafka raised.
        doing: What was tried, for the message: "Kafka could not <doing>".
    """
    cause = error.args[0] if error.args else None
    text = f"Kafka could not {doing}: {cause.str() if isinstance(cause, KafkaError) else error}"
    if isinstance(cause, KafkaError) and cause.code() in _NEEDS_A_PERSON:
        return OperatorNeeded(text)
    return BrokerUnavailable(text)


def _ignore(_error: KafkaError) -> None:
    """Connections come and go; calls that need an answer have deadlines of their own."""
