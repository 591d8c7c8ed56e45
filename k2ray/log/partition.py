"""Which partition an instrument lives in, for ever: live, backfill and files all use this one rule."""

from __future__ import annotations

import zlib


def partition_of(exchange: str, symbol: str, partitions: int) -> int:
    """Return the partition of an instrument: crc32(exchange + NUL + symbol) mod `partitions`.

    Args:
        exchange: As in the `exchange` column, lower case.
        symbol: As in the `symbol` column, upper case.
        partitions: The topic's number of partitions, chosen once at its creation.
    """
    return zlib.crc32(f"{exchange}\0{symbol}".encode()) % partitions
