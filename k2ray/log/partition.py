"""Which partition an instrument lives in, for ever: live, backfill and files all use this one rule."""

from __future__ import annotations

import zlib
from collections.abc import Sequence


def partition_of(exchange: str, symbol: str, partitions: int) -> int:
    """Return the partition of an instrument: crc32(exchange + NUL + symbol) mod `partitions`.

    Args:
        exchange: As in the `exchange` column, lower case.
        symbol: As in the `symbol` column, upper case.
        partitions: The topic's number of partitions, chosen once at its creation.
    """
    return zlib.crc32(f"{exchange}\0{symbol}".encode()) % partitions


def share_of(exchange: str, symbols: Sequence[str], partitions: int, connections: int, index: int) -> dict[str, int]:
    """Return the symbols of one of an exchange's connections, each with its partition p: p mod connections = index."""
    of_symbol = {symbol: partition_of(exchange, symbol, partitions) for symbol in symbols}
    return {symbol: partition for symbol, partition in of_symbol.items() if partition % connections == index}
