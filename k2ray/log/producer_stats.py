"""What a producer says about itself (`producer.py`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProducerStats:
    """What a producer did since its start, and what it holds now.

    Attributes:
        rows_delivered, records_delivered, bytes_delivered: Confirmed by Kafka, replays included.
        rows_in_flight, records_in_flight, bytes_in_flight: Handed to the client and not confirmed.
        spool_rows, spool_records, spool_bytes: On disk; those that are being replayed count here and in flight.
        failures: Deliveries that failed; each is in the spool, or waits in memory where there is no spool.
        refused: Records that Kafka will never take, kept aside.
        shed_rows, shed_records: Given up, since the spool was full.
        spooling: Whether anything waits on disk, or sending is held back.
        last_error: What Kafka last said against a delivery.
    """

    rows_delivered: int
    records_delivered: int
    bytes_delivered: int
    rows_in_flight: int
    records_in_flight: int
    bytes_in_flight: int
    spool_rows: int
    spool_records: int
    spool_bytes: int
    failures: int
    refused: int
    shed_rows: int
    shed_records: int
    spooling: bool
    last_error: str | None


@dataclass
class Tally:
    """The counts of what the client was handed, as `ProducerStats` shows them."""

    rows_delivered: int = 0
    records_delivered: int = 0
    bytes_delivered: int = 0
    rows_in_flight: int = 0
    records_in_flight: int = 0
    bytes_in_flight: int = 0

    def sent(self, records: int, rows: int, size: int) -> None:
        """Take note of records that the client took."""
        self.records_in_flight += records
        self.rows_in_flight += rows
        self.bytes_in_flight += size

    def ended(self, rows: int, size: int, *, delivered: bool) -> None:
        """Take note of one record's delivery report."""
        self.records_in_flight -= 1
        self.rows_in_flight -= rows
        self.bytes_in_flight -= size
        if delivered:
            self.records_delivered += 1
            self.rows_delivered += rows
            self.bytes_delivered += size
