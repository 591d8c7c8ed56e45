"""A disk that can be filled and emptied: a small tmpfs of its own, where this process may mount one."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


class SmallDisk:
    """A mounted folder. Its first bytes belong to the test: `fill` takes what is left, `empty` gives it back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, leaving: int = 0) -> None:
        """Take all room but `leaving` bytes."""
        free = shutil.disk_usage(self.path).free - leaving
        with self._ballast.open("ab") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), self._ballast.stat().st_size, max(free, 1))

    def empty(self) -> None:
        """Give the room back."""
        self._ballast.unlink()


def lacking_mount() -> str | None:
    """Return why this process may not mount a tmpfs; None if it may."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "a full disk needs a tmpfs of its own, and only root may mount one"
    return None


@contextlib.contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Mount a tmpfs for the time being.

    Raises:
        OSError: The mount was refused (a container without the right).
    """
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"mount was refused: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
