"""Output of commands: lines, progress bars, tables."""

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

from stateless_transducer.files import printable_text


@contextmanager
def progress_bar(task: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal (nothing elsewhere); yields a function of (done, total) that moves it."""
    with _bar(task, MofNCompleteColumn()) as move:
        yield move


@contextmanager
def bytes_bar(task: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar in bytes with their rate; a total of 0 means unknown."""
    with _bar(task, DownloadColumn(), TransferSpeedColumn()) as move:
        yield move


@contextmanager
def _bar(task: str, *counts: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    # not rich's own check, which takes a wish for colors (FORCE_COLOR, as notebooks set it) for a terminal; and before
    # rich 14.3, an invisible bar ends with an empty line
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    columns = (TextColumn(task), BarColumn(), *counts, TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task_id = bar.add_task(task, total=None)
        yield lambda done, total: bar.update(task_id, completed=done, total=total or None)


@contextmanager
def hours_bar(task: str, total: Callable[[], float | None]) -> Iterator[Callable[[float], None]]:
    """Show a progress bar in hours of audio on a terminal (nothing elsewhere); yields a function of the seconds done.

    Args:
        task: Name of the work in progress.
        total: Returns the total in seconds, None if unknown; called only if a bar is shown.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    columns = (TextColumn(task), BarColumn(), TextColumn("{task.fields[hours]}"), TimeRemainingColumn())
    total_s, started = total(), time.monotonic()

    def hours(done: float) -> str:
        rate = done / max(time.monotonic() - started, 1e-3)
        return f"{done / 3600:.2f}" + (f" of {total_s / 3600:.2f}" if total_s else "") + f" h, {rate:.0f}x real time"

    # a terminal shows printed lines above the bar; elsewhere standard output must stay unchanged
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task_id = bar.add_task(task, total=total_s, hours=hours(0.0))
        yield lambda done: bar.update(task_id, completed=done, hours=hours(done))


def say(text: str) -> None:
    """Print a line on standard output at once, without control characters."""
    print(printable_text(text), flush=True)


def complain(text: str) -> None:
    """Print a warning or error on standard error at once, without control characters."""
    print(printable_text(text), file=sys.stderr, flush=True)


class LiveLine:
    """A line that a terminal rewrites while its text grows; only its final text is printed elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()

    def show(self, text: str) -> None:
        """Show the text so far; a narrow terminal shows its end."""
        if not self._is_terminal:
            return
        text = printable_text(text)
        num_columns = shutil.get_terminal_size().columns - 1
        while cell_len(text) > num_columns:
            text = text[1:]
        print(f"\r\x1b[K{text}", end="", flush=True)

    def end(self, text: str) -> None:
        """Print the final text; nothing if it is empty."""
        self.show("")
        if text:
            say(text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table: the first column flush left, the others flush right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
