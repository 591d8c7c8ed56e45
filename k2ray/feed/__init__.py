"""Feeds: from an exchange's socket to Kafka. `session.py` runs one, `connection.py` decides, `transport/` does I/O."""
