"""What commands show: bars for work whose length is known, tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal (nothing elsewhere), moved by calling it with (done, total)."""
    with _bar(what, MofNCompleteColumn()) as move:
        yield move


@contextmanager
def bytes_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """The same in bytes, with their rate; a total of 0 is not known."""
    with _bar(what, DownloadColumn(), TransferSpeedColumn()) as move:
        yield move


@contextmanager
def _bar(what: str, *counts: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn(what), BarColumn(), *counts, TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def say(text: str) -> None:
    """A line for the user, at once."""
    print(text, flush=True)


def complain(text: str) -> None:
    """A line for the user about something that went wrong, on standard error."""
    print(text, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their names, the first one flush left, numbers flush right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
