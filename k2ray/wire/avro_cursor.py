"""Avro's values of many records at once: a cursor into each record, moved on together, field by field, in numpy.

All records lie one behind the other in one buffer. What one record says wrong marks that record alone (`why`):
its cursor stays inside of the buffer, and what is read for it is dropped by the caller. A loop in Python over the rows
costs 10 us a trade; this costs less than one.

Not its job: which fields there are (`avro_decode.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

MARGIN = 16
"""Bytes before and behind the records, so that a window of 16 bytes never leaves the buffer."""

TRUNCATED, NEGATIVE, OVERLONG, BRANCH, WIDE, NOT_TEXT, NULL, SURPLUS = range(1, 9)
REASONS = {
    TRUNCATED: "ends inside of {field}",
    NEGATIVE: "{field} has an impossible length",
    OVERLONG: "{field} is no Avro integer",
    BRANCH: "{field} has a branch that its schema does not have",
    WIDE: "{field} does not fit decimal(38, 18)",
    NOT_TEXT: "{field} is not UTF-8",
    NULL: "{field} is null, which it may not be",
    SURPLUS: "bytes after its end",
}

_HIGH_BITS = np.uint64(0x8080808080808080)
_LOW_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
_ONE = np.uint64(1)
_BYTE = np.uint64(0xFF)
# 8 bytes, the first n of them ones: what is kept of a window for a text of n bytes.
KEEP = np.array([(1 << 8 * n) - 1 for n in range(8)] + [2**64 - 1], dtype=np.uint64)


class Buffer:
    """Records one behind the other, and the same bytes as 8-byte numbers at every position.

    Args:
        values: The records.
    """

    def __init__(self, values: Sequence[bytes]) -> None:
        margin = bytes(MARGIN)
        joined = b"".join([margin, *values, margin])
        self.bytes = np.frombuffer(joined, dtype=np.uint8)
        self.little = np.ndarray((len(joined) - 7,), dtype="<u8", buffer=joined, strides=(1,))
        self.big = np.ndarray((len(joined) - 7,), dtype=">u8", buffer=joined, strides=(1,))
        sizes = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
        self.ends: Ints = np.cumsum(sizes) + MARGIN
        self.starts: Ints = self.ends - sizes


class Cursor:
    """Where each record is read on.

    Args:
        buffer: All records.
        pos: Position of each record's next byte.
        end: Position behind each record.

    Attributes:
        why: Each record's first reason to be refused, 0 for none.
        field: The number of the field in which it was found.
        now: The number of the field that is being read.
    """

    def __init__(self, buffer: Buffer, pos: Ints, end: Ints) -> None:
        self.buffer = buffer
        self.pos = pos
        self.end = end
        self.why = np.zeros(len(pos), dtype=np.uint8)
        self.field = np.zeros(len(pos), dtype=np.int32)
        self.now = 0

    def __len__(self) -> int:
        return len(self.pos)

    def some(self, mask: Bits) -> Cursor:
        """Return a cursor into the masked records alone; `rejoin` brings it back."""
        part = Cursor(self.buffer, self.pos[mask], self.end[mask])
        part.now = self.now
        return part

    def rejoin(self, mask: Bits, part: Cursor) -> None:
        """Take over where a part was read to, and what was wrong with it."""
        self.pos[mask] = part.pos
        if part.why.any():
            wrong = np.zeros(len(self), dtype=np.uint8)
            wrong[mask] = part.why
            for why in np.unique(part.why[part.why > 0]):
                self.mark(wrong == why, int(why))

    def mark(self, mask: Bits, why: int) -> None:
        """Refuse the masked records, unless they were refused before."""
        new = mask & (self.why == 0)
        self.why[new] = why
        self.field[new] = self.now

    def skip(self, count: Ints | int) -> None:
        """Move on by so many bytes."""
        self.pos = self.pos + count
        over = self.pos > self.end
        if over.any():
            self.mark(over, TRUNCATED)
            self.pos = np.minimum(self.pos, self.end)

    def integer(self) -> Ints:
        """Read a zigzag variable-length integer of each record."""
        first = self.buffer.bytes[self.pos]
        if first.size and first.max() < 0x80:
            # Lengths and branches: one byte each.
            self.skip(1)
            small = first.astype(np.int64)
            return (small >> 1) ^ -(small & 1)
        window = self.buffer.little[self.pos]
        stop = ~window & _HIGH_BITS
        upto = stop ^ (stop - _ONE)
        count = (np.bitwise_count(upto) >> 3).astype(np.int64)
        x = window & upto & _LOW_BITS
        x = ((x & np.uint64(0x7F007F007F007F00)) >> _ONE) | (x & np.uint64(0x007F007F007F007F))
        x = ((x & np.uint64(0x3FFF00003FFF0000)) >> np.uint64(2)) | (x & np.uint64(0x00003FFF00003FFF))
        x = ((x & np.uint64(0x0FFFFFFF00000000)) >> np.uint64(4)) | (x & np.uint64(0x000000000FFFFFFF))
        long = stop == 0
        if long.any():
            ninth = self.buffer.bytes[self.pos[long] + 8].astype(np.uint64)
            tenth = self.buffer.bytes[self.pos[long] + 9].astype(np.uint64)
            more = ninth >= 0x80
            x[long] |= (ninth & np.uint64(0x7F)) << np.uint64(56)
            x[long] |= np.where(more, tenth << np.uint64(63), np.uint64(0))
            count[long] = np.where(more, 10, 9)
            overlong = np.zeros(len(self), dtype=np.bool_)
            overlong[long] = more & (tenth > 1)
            self.mark(overlong, OVERLONG)
        self.skip(count)
        return (x >> _ONE).view(np.int64) ^ -(x & _ONE).view(np.int64)

    def spans(self) -> tuple[Ints, Ints]:
        """Read a length and move behind that many bytes; returns where they start, and how many they are."""
        length = self.integer()
        wrong = (length < 0) | (length > self.end - self.pos)
        if wrong.any():
            self.mark(length < 0, NEGATIVE)
            self.mark(wrong, TRUNCATED)
            length = np.where(wrong, 0, length)
        start = self.pos
        self.pos = start + length
        return start, length

    def fixed(self, size: int) -> tuple[Ints, Ints]:
        """Move behind `size` bytes; returns the same as `spans`."""
        start = self.pos
        self.skip(size)
        wrong = self.why > 0
        return np.minimum(start, self.end), np.where(wrong, 0, size).astype(np.int64)

    def short_texts(self) -> Words | None:
        """Read texts of at most 7 bytes, each as a number: its length's byte is the lowest, then come its own.

        None, with nothing read, where any text is longer or anything is wrong: `spans` says what.
        """
        window = self.buffer.little[self.pos]
        head = int(window[0]) & 0xFF
        if head & 1 or head > 14:
            return None
        width: Ints | int = (head >> 1) + 1
        texts = window & KEEP[width]
        if (texts != texts[0]).any():
            heads = (window & _BYTE).astype(np.int64)
            if heads.max() > 14 or (heads & 1).any():
                return None
            width = (heads >> 1) + 1
            texts = window & KEEP[width]
        end = self.pos + width
        if (end > self.end).any():
            return None
        self.pos = end
        return texts

    def common_branch(self, branches: int) -> int | None:
        """Read which branch of a union all records take; None, with nothing read, where they differ."""
        first = self.buffer.bytes[self.pos]
        taken = int(first[0])
        if taken & 1 or taken >> 1 >= min(branches, 64) or (first != taken).any() or (self.pos == self.end).any():
            return None
        self.pos = self.pos + 1
        return taken >> 1

    def branch(self, branches: int) -> Ints:
        """Read which branch of a union each record takes."""
        taken = self.integer()
        wrong = (taken < 0) | (taken >= branches)
        if wrong.any():
            self.mark(wrong, BRANCH)
            taken = np.where(wrong, 0, taken)
        return taken
