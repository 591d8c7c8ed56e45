"""pyiceberg's FileIO for local folders, with fsync: a power cut must not leave the catalog naming an empty file.

pyiceberg closes its files without fsync, so the catalog's (durable) row could name a metadata.json whose bytes never
reached the disk. Here a file counts as closed when its bytes and its folder's entry are on disk. Object stores need
none of this and pass through unchanged. pyiceberg loads the class by its name (`py-io-impl`).

Next in the flow: `catalog.py` opens the catalog with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from types import TracebackType
from typing import BinaryIO
from urllib.parse import urlsplit

from pyiceberg.exceptions import RESTError
from pyiceberg.io import FileIO, InputFile, OutputFile, OutputStream
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO
from sqlalchemy.exc import SQLAlchemyError

from k2ray.errors import CatalogUnavailable, DiskFull

IMPLEMENTATION = "k2ray.lake.durable.DurableFileIO"

AWAY = (SQLAlchemyError, RESTError, OSError)
"""What pyiceberg raises when the catalog or the storage does not answer; mapped by `unavailable`."""


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def unavailable(what: str, error: BaseException) -> CatalogUnavailable:
    """Return the error to raise for one of `AWAY`: `DiskFull` with its remedy where that is the cause.

    Args:
        what: What could not be done; begins the message.
        error: As it was raised.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number in _FULL:
        where = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return DiskFull(f"{what}: {os.strerror(number)}{where}; make room, nothing is lost and it goes on by itself")
    if isinstance(error, SQLAlchemyError):
        text = str(error)
        if "disk is full" in text or "disk I/O error" in text:
            return DiskFull(f"{what}: the catalog's disk is full or broken; make room, it goes on by itself: {text}")
        if "database is locked" in text:
            return CatalogUnavailable(
                f"{what}: another process holds the SQLite catalog locked; end it (`fuser` names it), "
                f"nothing is lost and it goes on by itself: {text}"
            )
    return CatalogUnavailable(f"{what}: {error}")


def remove_quietly(io: FileIO, location: str) -> None:
    """Remove a half-written file; a disk that does not even allow that leaves it to the sweep."""
    with contextlib.suppress(OSError):
        io.delete(location)


def local_path(location: str) -> str | None:
    """Return the path of a location in the local file system, None for one elsewhere.

    Args:
        location: `file:///a/b`, `/a/b` or `s3://bucket/a`.
    """
    scheme = urlsplit(location).scheme
    if scheme == "file":
        return location.removeprefix("file://")
    return None if len(scheme) > 1 else location


def sync_folder(path: str) -> None:
    """Make a folder's entries durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_folders(path: str) -> None:
    """Create a folder and its missing parents, each entry durable."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        sync_folder(os.path.dirname(folder))


class _DurableStream(OutputStream):
    """A file whose close means that it is on disk."""

    def __init__(self, path: str, overwrite: bool) -> None:
        self._path = path
        make_folders(os.path.dirname(path))
        self._file: BinaryIO = open(path, "wb" if overwrite else "xb")

    def __del__(self) -> None:
        """Close what pyiceberg left open: it forgets a stream whose very first write failed."""
        with contextlib.suppress(AttributeError, OSError):
            self._file.close()

    def write(self, b: bytes) -> int:
        return self._file.write(b)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()  # even where the disk is full, or each retry would leave a file open
        sync_folder(os.path.dirname(self._path))

    @property
    def closed(self) -> bool:
        return self._file.closed

    def __enter__(self) -> _DurableStream:
        return self

    def __exit__(
        self, exctype: type[BaseException] | None, excinst: BaseException | None, exctb: TracebackType | None
    ) -> None:
        self.close()


class _DurableFile(PyArrowFile):
    def create(self, overwrite: bool = False) -> OutputStream:
        return _DurableStream(self._path, overwrite)


class DurableFileIO(PyArrowFileIO):
    """PyArrowFileIO that makes local files durable before it says they are written."""

    def new_output(self, location: str) -> PyArrowFile:
        """Return a file to write; a local one is on disk once it is closed."""
        path = local_path(location)
        if path is None:
            return super().new_output(location)
        return _DurableFile(location, path, self.fs_by_scheme("file", ""))

    def delete(self, location: str | InputFile | OutputFile) -> None:
        """Delete a file; one that is gone already is as good as deleted (two processes clean up the same history)."""
        with contextlib.suppress(FileNotFoundError):
            super().delete(location)
