"""What commands show: bars for work whose length is known, tables."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal (nothing elsewhere), moved by calling it with (done, total)."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def say(text: str) -> None:
    """A line for the user, at once."""
    print(text, flush=True)


def complain(text: str) -> None:
    """A line for the user about something that went wrong, on standard error."""
    print(text, file=sys.stderr, flush=True)


class LiveLine:
    """A line that is written anew on a terminal while its text grows; what it ends as is a line anywhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()

    def show(self, text: str) -> None:
        """The text so far, of which a narrow terminal shows the end."""
        if not self._is_terminal:
            return
        room = shutil.get_terminal_size().columns - 1
        while cell_len(text) > room:
            text = text[1:]
        print(f"\r\x1b[K{text}", end="", flush=True)

    def end(self, text: str) -> None:
        """The text as it stays; nothing if it is empty."""
        self.show("")
        if text:
            say(text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their names, the first one flush left, numbers flush right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
