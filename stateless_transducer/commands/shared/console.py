"""What commands show: bars for work whose length is known, tables."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.cells import cell_len
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
    # not what rich asks, which takes a wish for colors (FORCE_COLOR, as notebooks set it) for a terminal; and before
    # rich 14.3, a bar that is not shown ends with an empty line
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    columns = (TextColumn(what), BarColumn(), *counts, TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


@contextmanager
def hours_bar(what: str, total: Callable[[], float | None]) -> Iterator[Callable[[float], None]]:
    """A bar on the terminal (nothing elsewhere) that counts hours of audio, moved by calling it with the seconds done.

    Args:
        what: is being done.
        total: asked for the seconds in all, if there is a bar; None: nobody knows.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[hours]}"), TimeRemainingColumn())
    total_s, started = total(), time.monotonic()

    def hours(done: float) -> str:
        rate = done / max(time.monotonic() - started, 1e-3)
        return f"{done / 3600:.2f}" + (f" of {total_s / 3600:.2f}" if total_s else "") + f" h, {rate:.0f}x real time"

    # a terminal shows lines above the bar; elsewhere standard output must stay what it is
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(what, total=total_s, hours=hours(0.0))
        yield lambda done: bar.update(task, completed=done, hours=hours(done))


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
