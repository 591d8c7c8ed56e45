"""The sequence ledger: which rows are new, what is missing, which numbering ids belong to; pure, and its file."""

from __future__ import annotations

from k2ray.ledger.file import LedgerPosition, decode_ledger, encode_ledger
from k2ray.ledger.gaps import Gap
from k2ray.ledger.ledger import Decision, Ledger, LedgerSummary
from k2ray.ledger.params import LedgerParams
from k2ray.ledger.spaces import LedgerEvent

__all__ = [
    "Decision",
    "Gap",
    "Ledger",
    "LedgerEvent",
    "LedgerParams",
    "LedgerPosition",
    "LedgerSummary",
    "decode_ledger",
    "encode_ledger",
]
