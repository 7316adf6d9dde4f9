"""Child processes: they end with their parent, and their errors reach it unchanged. What Windows lacks is skipped."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


def end_with_parent() -> None:
    """End this child process as soon as its parent has ended, even if that was killed by SIGKILL.

    The parent holds one end of a pipe, which the system closes. So this needs neither a signal nor a timer, and works
    while the main thread is inside a long computation.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def signals_blocked(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Let signals to this thread, and to the processes that it starts, wait until the end of the block."""
    if sys.platform == "win32":
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def unblock_signals(numbers: Iterable[signal.Signals]) -> None:
    """Receive signals that were blocked while this process started."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


class ChildTraceback(Exception):
    """The traceback of an error in a child process, as text: the cause of the error that the parent raises."""


@dataclass(frozen=True)
class CarriedError:
    """An exception on its way from a child process to its parent."""

    error: Exception
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> CarriedError:
        """Pack an exception; one that cannot be pickled becomes a ValueError, OSError or RuntimeError."""
        text = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            kind = next((kind for kind in (ValueError, OSError) if isinstance(error, kind)), None)
            error = RuntimeError(f"{type(error).__name__}: {error}") if kind is None else kind(str(error))
        return cls(error, text)

    def unpack(self) -> Exception:
        """Return the exception to raise in the parent."""
        self.error.__cause__ = ChildTraceback(f"\n{self.traceback}")
        return self.error
