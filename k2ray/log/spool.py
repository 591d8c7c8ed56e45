"""Batches that Kafka has not taken, on disk: first in, first out, bounded, across restarts.

A folder holds numbered files (`spool_file.py`). New records go to the newest file; the oldest is replayed and deleted
once Kafka confirmed all of it, so a crash in between sends some records twice (the ledger removes them) and loses none.
Over the bound, or with the disk full, a record is shed: counted by topic and reported, never silently.

Two processes may share a folder for a while (a feed's new generation beside its old one): each takes a slot of its own
by a file lock, and adopts what dead ones left behind; so does what lies in the folders of producers that nobody wants
any more. Not its job: when to spool and when to replay (`producer.py`).
"""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from k2ray.log.spool_file import Content, SpoolRecord, SpoolWriter, measure, read_records, sync_folder
from k2ray.logs import get_logger

_log = get_logger(__name__)

# The unit of replay: large enough to keep Kafka busy, small enough that a crash repeats little.
FILE_BYTES = 4_194_304
# Numbers leave room: what was under way when trouble began is put before what came after it.
_STEP = 1000
# What Arrow and the headers add to a record, at most; the first one of a file brings the schema too.
_FRAMING_BYTES = 2048
# What each further record of an append adds: its places in the columns' offsets, its topic.
_RECORD_BYTES = 64
_SUFFIX = ".arrow"


@dataclass
class Shed:
    """What was given up because the spool was full."""

    records: int = 0
    rows: int = 0
    bytes: int = 0


@dataclass
class _File:
    path: Path
    content: Content
    bytes: int
    taken: bool = False


class Spool:
    """The spool of one producer. Not thread-safe.

    Args:
        folder: Its own; slots are made below it.
        max_bytes: Most that may lie on disk in this process's slot.
        orphans: Folders of producers that are not wanted any more. One that still lives is left alone until it ends.

    Attributes:
        shed: Topic -> what was given up.
        bytes: Bytes on disk, those that are being replayed included.
    """

    def __init__(self, folder: Path, max_bytes: int, orphans: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._orphans = tuple(orphans)
        self.max_bytes = max_bytes
        self.shed: dict[str, Shed] = {}
        self.bytes = 0
        self._files: dict[int, _File] = {}
        self._fresh: tuple[int, SpoolWriter] | None = None
        self._ahead: tuple[int, SpoolWriter] | None = None
        self._last = 0
        self._lock, self._slot = _claim(self.folder)
        self._load()
        self.adopt()

    @property
    def records(self) -> int:
        """Records on disk, those that are being replayed included."""
        return sum(file.content.records for file in self._files.values())

    @property
    def rows(self) -> int:
        """Rows of market data on disk."""
        return sum(file.content.rows for file in self._files.values())

    @property
    def waiting(self) -> bool:
        """Whether something lies here that is not being replayed: new records must go behind it."""
        return any(not file.taken for file in self._files.values())

    def append(self, *records: SpoolRecord) -> bool:
        """Put new records behind all others. Returns False if they were shed."""
        if self._fresh is not None and self._fresh[1].bytes >= FILE_BYTES:
            self._close_fresh()
        if self._fresh is None:
            self._last += _STEP
            number = self._last
        else:
            number = self._fresh[0]
        return self._write(records, number, fresh=True)

    def append_failed(self, *records: SpoolRecord) -> bool:
        """Put records that Kafka did not take before the new ones, behind failed ones before them.

        Returns False if they were shed.
        """
        if self._ahead is None:
            waiting = [number for number, file in self._files.items() if not file.taken]
            if not waiting:
                self._last += _STEP
            number = min(waiting) - 1 if waiting else self._last
            while number in self._files:  # an earlier file of failures that is being replayed
                number -= 1
        else:
            number = self._ahead[0]
        return self._write(records, number, fresh=False)

    def take(self) -> tuple[int, list[SpoolRecord]] | None:
        """Take the oldest file for replay: its number (for `done`, `put_back`) and its records."""
        waiting = [number for number, file in self._files.items() if not file.taken]
        if not waiting:
            return None
        number = min(waiting)
        if self._fresh is not None and self._fresh[0] == number:
            self._close_fresh()
        if self._ahead is not None and self._ahead[0] == number:
            self._close_ahead()
        file = self._files[number]
        file.taken = True
        return number, list(read_records(file.path))

    def done(self, number: int) -> None:
        """Delete a file that Kafka has confirmed as a whole."""
        file = self._files.pop(number)
        file.path.unlink()
        self.bytes -= file.bytes

    def put_back(self, number: int) -> None:
        """Give a file back whose replay failed; it is the oldest again."""
        self._files[number].taken = False

    def set_aside(self, record: SpoolRecord, reason: str) -> bool:
        """Keep a record that Kafka will never take in `refused/`, where a person can look; nothing waits behind it.

        Returns False if it was shed, since the disk did not take it either.
        """
        folder = self._slot / "refused"
        try:
            folder.mkdir(exist_ok=True)
            number = 1 + max((int(path.stem) for path in folder.glob(f"*{_SUFFIX}")), default=0)
            writer = SpoolWriter(folder / f"{number:020d}{_SUFFIX}")
            writer.append([record])
            writer.close()
        except OSError as error:
            self._count_shed([record], str(error))
            return False
        _log.error("record_refused", topic=record.topic, rows=record.rows, reason=reason, file=str(writer.path))
        return True

    def sync(self) -> None:
        """Make everything that was appended survive a power cut."""
        for open_file in (self._fresh, self._ahead):
            if open_file is not None:
                open_file[1].sync()

    def adopt(self) -> int:
        """Take over what dead processes left in other slots of the folders; returns the number of files."""
        adopted = 0
        for slot in (slot for folder in (self.folder, *self._orphans) for slot in sorted(folder.glob("slot-*"))):
            if slot == self._slot:
                continue
            lock = _try_lock(slot)
            if lock is None:
                continue
            with lock:
                for path in sorted(slot.glob(f"*{_SUFFIX}")):
                    self._last += _STEP
                    moved = path.rename(self._slot / f"{self._last:020d}{_SUFFIX}")
                    self._enter(self._last, moved)
                    adopted += 1
        if adopted:
            # Our own open file must stay the newest.
            self._close_fresh()
            sync_folder(self._slot)
            _log.info("spool_adopted", files=adopted, folder=str(self.folder))
        return adopted

    def close(self) -> None:
        """Sync and close; what is here waits for the next process."""
        self._close_fresh()
        self._close_ahead()
        self._lock.close()

    def _write(self, records: Sequence[SpoolRecord], number: int, *, fresh: bool) -> bool:
        size = sum(len(record.value) for record in records)
        if self.bytes + size + _FRAMING_BYTES + len(records) * _RECORD_BYTES > self.max_bytes:
            self._count_shed(records, "full")
            return False
        try:
            writer = self._writer(number, fresh=fresh)
            writer.append(records)
        except OSError as error:
            self._drop_writer(fresh=fresh)
            self._forget_if_empty(number)
            self._count_shed(records, f"{error}: make room, until then what Kafka does not take is given up")
            return False
        file = self._files[number]
        self.bytes += writer.bytes - file.bytes
        file.bytes = writer.bytes
        file.content = Content(writer.records, file.content.rows + sum(record.rows for record in records), 0)
        return True

    def _writer(self, number: int, *, fresh: bool) -> SpoolWriter:
        current = self._fresh if fresh else self._ahead
        if current is not None:
            return current[1]
        writer = SpoolWriter(self._slot / f"{number:020d}{_SUFFIX}")
        sync_folder(self._slot)
        self._files[number] = _File(writer.path, Content(0, 0, 0), 0)
        if fresh:
            self._fresh = (number, writer)
        else:
            self._ahead = (number, writer)
        return writer

    def _drop_writer(self, *, fresh: bool) -> None:
        """After a failed write: what is whole in the file stays, the next record starts another one."""
        try:
            if fresh:
                self._close_fresh()
            else:
                self._close_ahead()
        except OSError as error:
            _log.error("spool_close_failed", error=str(error))

    def _forget_if_empty(self, number: int) -> None:
        """A full disk refuses record after record: each one's own file, with nothing whole in it, must not stay."""
        file = self._files.get(number)
        if file is not None and file.content.records == 0:
            del self._files[number]
            file.path.unlink(missing_ok=True)

    def _close_fresh(self) -> None:
        current, self._fresh = self._fresh, None
        if current is not None:
            current[1].close()

    def _close_ahead(self) -> None:
        current, self._ahead = self._ahead, None
        if current is not None:
            current[1].close()

    def _count_shed(self, records: Sequence[SpoolRecord], reason: str) -> None:
        for record in records:
            shed = self.shed.setdefault(record.topic, Shed())
            if shed.records % 1000 == 0:
                _log.error("spool_shed", topic=record.topic, reason=reason, records=shed.records + 1, bytes=self.bytes)
            shed.records += 1
            shed.rows += record.rows
            shed.bytes += len(record.value)

    def _load(self) -> None:
        for path in sorted(self._slot.glob(f"*{_SUFFIX}")):
            number = int(path.stem)
            self._last = max(self._last, -(-number // _STEP) * _STEP)
            self._enter(number, path)

    def _enter(self, number: int, path: Path) -> None:
        content = measure(path)
        if content.torn_bytes:
            _log.warning("spool_torn", file=str(path), whole_records=content.records, torn_bytes=content.torn_bytes)
        self._files[number] = _File(path, content, path.stat().st_size)
        self.bytes += self._files[number].bytes


def _claim(folder: Path) -> tuple[TextIO, Path]:
    """Return the first slot that no living process has, and the lock that makes it ours."""
    index = 0
    while True:
        slot = folder / f"slot-{index}"
        slot.mkdir(parents=True, exist_ok=True)
        lock = _try_lock(slot)
        if lock is not None:
            return lock, slot
        index += 1


def _try_lock(slot: Path) -> TextIO | None:
    lock = (slot / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
