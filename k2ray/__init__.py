"""k2ray records market data into an Iceberg lakehouse, exactly once, and can prove that it missed nothing.

Read the package in the order a trade travels: `feed/` (socket to batches), `log/` (Kafka), `ledger/` and `lake/`
(exactly once into Iceberg), `query/` (answers). `docs/architecture.md` numbers the steps.
"""

__version__ = "0.1.0"
