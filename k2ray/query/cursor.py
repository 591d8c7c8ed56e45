"""Where the next page begins: a snapshot and a position, in a token that says whether it is genuine.

Pages are repeatable because each reads the same snapshot and continues after an exact place in the total order. The
checksum is keyed with the table's uuid: it finds damage and cursors of other tables. It is no secret, and need not be
one: all that a forger could name is a snapshot and a place, which the request may name anyway, and both are validated.

Not here: whether the snapshot still exists (`plan.py` answers 410).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

import msgspec

from k2ray.errors import BadRequest

_VERSION = 1
_CHECK_BYTES = 10
_Parts = tuple[int, int, bytes, tuple[int | str, ...]]
_ALLOWED = "allowed: the next_cursor of an earlier answer, with the same other parameters"


@dataclass(frozen=True)
class Cursor:
    """A place in an answer.

    Attributes:
        snapshot_id: The Iceberg snapshot that all pages read.
        position: Sort key of the last row that was sent; the next page begins after it.
    """

    snapshot_id: int
    position: tuple[int | str, ...]


def encode_cursor(cursor: Cursor, request_digest: bytes, key: str) -> str:
    """Return the token of a cursor.

    Args:
        cursor: What to remember.
        request_digest: `digest()` of the request that it belongs to.
        key: The table's uuid.
    """
    body = msgspec.msgpack.encode([_VERSION, cursor.snapshot_id, request_digest, list(cursor.position)])
    return base64.urlsafe_b64encode(_check(body, key) + body).rstrip(b"=").decode()


def decode_cursor(token: str, request_digest: bytes, key: str) -> Cursor:
    """Read a token that `encode_cursor` made.

    Raises:
        BadRequest: Damaged, of another table, or of another question.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("cursor", f"is not a cursor; {_ALLOWED}") from None
    check, body = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
    # Several texts decode to the same bytes (spare bits of the last character): only the canonical one is genuine.
    canonical = base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == token
    if check != _check(body, key) or not canonical:
        raise BadRequest("cursor", f"is damaged or of another table; {_ALLOWED}")
    try:
        version, snapshot_id, digest, position = msgspec.msgpack.decode(body, type=_Parts)
    except msgspec.DecodeError:
        raise BadRequest("cursor", f"is not a cursor; {_ALLOWED}") from None
    if version != _VERSION:
        raise BadRequest("cursor", f"is of another version; {_ALLOWED}")
    if digest != request_digest:
        raise BadRequest("cursor", f"belongs to another question; {_ALLOWED}")
    return Cursor(snapshot_id, position)


def _check(body: bytes, key: str) -> bytes:
    return hashlib.blake2b(body, key=key.encode()[:64], digest_size=_CHECK_BYTES).digest()
