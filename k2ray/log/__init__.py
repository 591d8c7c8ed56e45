"""Kafka: the local broker, topics, partitions, producer with its spool, and consumer."""
