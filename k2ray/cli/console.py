"""What the commands print: steps with their time, complaints on stderr. Nothing else in the project prints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line for people."""
    out.print(escape(text))


def complain(text: str) -> None:
    """Print what went wrong, on stderr."""
    err.print(f"[bold red]k2ray:[/] {escape(text)}")


class Step:
    """One step of a command; set `result` to what it found."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.result = ""


@contextlib.contextmanager
def step(title: str) -> Iterator[Step]:
    """Announce a step, and print how it ended and how long it took."""
    current = Step(title)
    started_s = time.monotonic()
    if out.is_terminal:
        out.print(f"  [dim]…[/] {escape(title)}", end="\r")
    try:
        yield current
    except BaseException:
        out.print(f"  [red]✗[/] {escape(title)}")
        raise
    took_s = time.monotonic() - started_s
    result = f": {escape(current.result)}" if current.result else ""
    out.print(f"  [green]✓[/] {escape(title)}{result} [dim]({took_s:.1f} s)[/]")
