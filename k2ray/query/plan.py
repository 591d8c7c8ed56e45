"""15. Which files a question reads, and in what order: pruned by exchange, symbol and time, cut into slices of time.

With a limit the newest (or oldest) rows usually lie in a few files. Slices are disjoint ranges of time in the order of
the answer, each with the files that overlap it, so the engine may stop once the limit is reached and is still exact.

Next in the flow: `engine.py` reads the slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from k2ray.query.files import FileList
from k2ray.query.request import Order, Selection

FIRST_SLICE_ROWS = 100_000
GROWTH = 4


@dataclass(frozen=True)
class Slice:
    """Files that overlap [start_us, end_us), None being open.

    `space` is the sequence space of all their rows, None where that is not known.
    """

    paths: tuple[str, ...]
    start_us: int | None
    end_us: int | None
    space: str | None = None


def prune(files: FileList, selection: Selection) -> FileList:
    """Return the files that may hold rows of the selection; none that does is ever dropped."""
    keep = np.ones(len(files), dtype=np.bool_)
    if selection.start_us is not None:
        keep &= files.last_us >= selection.start_us
    if selection.end_us is not None:
        keep &= files.first_us < selection.end_us
    if selection.exchange is not None:
        # A file without an exchange in its partition may hold any.
        keep &= (files.exchanges == selection.exchange) | (files.exchanges == "")
    if selection.symbols:
        for place in np.flatnonzero(keep):
            first, last = files.first_symbol[place], files.last_symbol[place]
            keep[place] = any(first <= symbol <= last for symbol in selection.symbols)
    return files.take(keep)


def slices(files: FileList, order: Order, goal_rows: int = FIRST_SLICE_ROWS, align_us: int = 1) -> Iterator[Slice]:
    """Cut the files into slices of time, in the order of the answer, growing by `GROWTH`.

    Args:
        files: Pruned files.
        order: Of the answer: `asc` begins with the oldest.
        goal_rows: Rows of the files in the first slice, at least.
        align_us: Slices are cut at multiples of it only (a bar must not be cut).
    """
    if not len(files):
        return
    ascending = order == "asc"
    files = files.take(np.argsort(files.first_us if ascending else -files.last_us, kind="stable"))
    total = np.cumsum(files.rows)
    reached: int | None = None
    read = 0
    while True:
        taken = int(np.searchsorted(total, read + goal_rows)) + 1
        if taken >= len(files):
            yield _slice(files, reached, None, ascending)
            return
        if ascending:
            cut = int(files.first_us[taken]) // align_us * align_us
            moved = reached is None or cut > reached
        else:
            cut = -(-(int(files.last_us[taken]) + 1) // align_us) * align_us
            moved = reached is None or cut < reached
        if moved and _holds_any(files, reached, cut, ascending):
            yield _slice(files, reached, cut, ascending)
            reached = cut
        read = int(total[taken - 1])
        goal_rows *= GROWTH


def _holds_any(files: FileList, reached: int | None, cut: int, ascending: bool) -> bool:
    return bool(_overlap(files, reached, cut, ascending).any())


def _overlap(files: FileList, reached: int | None, cut: int | None, ascending: bool) -> np.ndarray:
    start, end = (reached, cut) if ascending else (cut, reached)
    keep = np.ones(len(files), dtype=np.bool_)
    if start is not None:
        keep &= files.last_us >= start
    if end is not None:
        keep &= files.first_us < end
    return keep


def _slice(files: FileList, reached: int | None, cut: int | None, ascending: bool) -> Slice:
    start, end = (reached, cut) if ascending else (cut, reached)
    chosen = files.take(_overlap(files, reached, cut, ascending))
    spaces = set(chosen.spaces)
    return Slice(tuple(chosen.paths), start, end, spaces.pop() if len(spaces) == 1 else None)
