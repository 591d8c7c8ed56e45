"""5. The tables' columns as Arrow schemas: trades and quotes, on the wire and at rest; gaps, which never travel.

The wire schema is the table's columns plus `sequence_from`, the exclusive start of the ids that a row covers:
(sequence_from, source_sequence]. Strings that repeat travel as dictionaries. Prices and quantities are decimal(38,18)
from wire to answer, since narrower decimals overflow on real quantities (12345678901.5) or truncate real prices.

Next in the flow: `wire/codec.py` turns batches of these schemas into bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

DECIMAL = pa.decimal128(38, 18)
TIMESTAMP = pa.timestamp("us", tz="UTC")
REPEATED = pa.dictionary(pa.int32(), pa.string())
STRING_MAP = pa.map_(pa.string(), pa.string())

SEQUENCE_FROM = "sequence_from"

SIDES = ("BUY", "SELL", "SELL_SHORT", "UNKNOWN")
ORIGINS = ("live", "backfill", "file")


@dataclass(frozen=True)
class Channel:
    """A kind of data that an exchange sends; each has its own Kafka topic.

    Attributes:
        name: As in the settings' `channels` and in topic names: `trades`, `agg_trades`, `quotes`.
        table: The Iceberg table that its rows go to.
        space: Base of `sequence_space`: which numbering the ids belong to.
        proves_gaps: Whether ids step by one, so that a missing id proves a missing row.
    """

    name: str
    table: str
    space: str
    proves_gaps: bool


CHANNELS = {
    channel.name: channel
    for channel in (
        Channel("trades", table="trades", space="", proves_gaps=True),
        Channel("agg_trades", table="trades", space="agg", proves_gaps=True),
        Channel("quotes", table="quotes", space="", proves_gaps=False),
    )
}

_HEAD = [
    pa.field("exchange", REPEATED, nullable=False),
    pa.field("symbol", REPEATED, nullable=False),
    pa.field("asset_class", REPEATED, nullable=False),
]
_TAIL = [
    pa.field("source_sequence", pa.int64()),
    pa.field("sequence_space", REPEATED, nullable=False),
    pa.field("ingestion_timestamp", TIMESTAMP, nullable=False),
    pa.field("origin", REPEATED, nullable=False),
    pa.field("vendor_data", STRING_MAP),
]

TRADES_WIRE = pa.schema(
    [
        *_HEAD,
        pa.field("trade_id", pa.string(), nullable=False),
        pa.field("timestamp", TIMESTAMP, nullable=False),
        pa.field("price", DECIMAL, nullable=False),
        pa.field("quantity", DECIMAL, nullable=False),
        pa.field("currency", REPEATED, nullable=False),
        pa.field("side", REPEATED, nullable=False),
        pa.field("trade_conditions", pa.list_(pa.string())),
        *_TAIL,
        pa.field(SEQUENCE_FROM, pa.int64()),
    ]
)

QUOTES_WIRE = pa.schema(
    [
        *_HEAD,
        pa.field("quote_id", pa.string(), nullable=False),
        pa.field("timestamp", TIMESTAMP, nullable=False),
        pa.field("bid_price", DECIMAL, nullable=False),
        pa.field("bid_quantity", DECIMAL, nullable=False),
        pa.field("ask_price", DECIMAL, nullable=False),
        pa.field("ask_quantity", DECIMAL, nullable=False),
        pa.field("currency", REPEATED, nullable=False),
        *_TAIL,
        pa.field(SEQUENCE_FROM, pa.int64()),
    ]
)

WIRE_SCHEMAS = {"trades": TRADES_WIRE, "quotes": QUOTES_WIRE}
"""Table name -> schema of its batches in Kafka."""

# A control record: ids (sequence_from, sequence_to] of a space are lost for good, so the ledger stops waiting for them.
SEAL_WIRE = pa.schema(
    [
        pa.field("exchange", pa.string(), nullable=False),
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("sequence_space", pa.string(), nullable=False),
        pa.field("sequence_from", pa.int64(), nullable=False),
        pa.field("sequence_to", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

GAPS = "gaps"
"""The table of what became of missing ids."""

GAPS_ROWS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("exchange", REPEATED, nullable=False),
        pa.field("symbol", REPEATED, nullable=False),
        pa.field("timestamp", TIMESTAMP, nullable=False),
        pa.field("table", REPEATED, nullable=False),
        pa.field("sequence_space", REPEATED, nullable=False),
        pa.field("first_id", pa.int64(), nullable=False),
        pa.field("last_id", pa.int64(), nullable=False),
        pa.field("missing", pa.int64(), nullable=False),
        pa.field("state", REPEATED, nullable=False),
        pa.field("opened_at", TIMESTAMP, nullable=False),
        pa.field("closed_at", TIMESTAMP),
        pa.field("reason", REPEATED, nullable=False),
        pa.field("snapshot_id", pa.int64(), nullable=False),
    ]
)


def row_schema(table: str) -> pa.Schema:
    """Return the Arrow schema of a table's rows before they are stored: repeated strings are dictionaries.

    Args:
        table: `trades`, `quotes` (the wire's without `sequence_from`) or `gaps`.
    """
    if table == GAPS:
        return GAPS_ROWS
    return pa.schema([field for field in WIRE_SCHEMAS[table] if field.name != SEQUENCE_FROM])


def table_schema(table: str) -> pa.Schema:
    """Return the Arrow schema of a table at rest: as `row_schema`, with plain strings.

    Args:
        table: `trades`, `quotes` or `gaps`.
    """
    fields = row_schema(table)
    return pa.schema([field.with_type(pa.string()) if field.type == REPEATED else field for field in fields])
