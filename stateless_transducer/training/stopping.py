"""Requests to stop: Ctrl-C, and SIGTERM as schedulers and pre-emptible machines send it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from stateless_transducer.processes import unblock_signals

_PATIENCE_S = 2.0
"""Time that a second Ctrl-C leaves the main thread to be interrupted."""
_END = 0
"""Byte that ends the answering thread; no signal has this number."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ANNOUNCEMENTS = {
    signal.SIGINT: "Finishing this batch, then saving a checkpoint. Press Ctrl-C again to quit at once.",
    signal.SIGTERM: "SIGTERM received: finishing this batch, then saving a checkpoint.",
}


class StopRequest:
    """Note SIGTERM and SIGINT inside a ``with`` block of the main thread; a second SIGINT quits at once.

    If SIGINT is ignored on entry, it stays ignored.

    Args:
        is_announced: whether a signal is answered on standard error. That happens at once, even while the main thread
            is inside a long computation, where Python's signal handlers have to wait.
    """

    def __init__(self, *, is_announced: bool = False) -> None:
        self.name: str | None = None
        """Name of the first signal received, or None."""
        self._is_announced = is_announced
        self._is_over = threading.Event()
        self._handlers: dict[signal.Signals, Any] = {}
        self._descriptors: tuple[int, int] | None = None
        self._answering: threading.Thread | None = None
        self._wakeup_before = -1

    def __enter__(self) -> StopRequest:
        is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        # Windows wakes sockets only
        if self._is_announced and not is_ignored and sys.platform != "win32":
            reader, writer = self._descriptors = os.pipe()
            os.set_blocking(writer, False)
            self._answering = threading.Thread(target=self._answer, args=(reader,), daemon=True)
            self._answering.start()
            # the interpreter writes the number of a signal there when it arrives
            self._wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _SIGNALS[:1] if is_ignored else _SIGNALS:
            self._handlers[number] = signal.signal(number, self._note)
        # the parent may have blocked them until now, so that none is lost while this process starts
        unblock_signals(_SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._descriptors is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.write(self._descriptors[1], bytes([_END]))
            os.close(self._descriptors[1])
        if self._answering is not None:
            # the announcement comes before all later output; a stopped terminal must not block the end
            self._answering.join(_PATIENCE_S)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _answer(self, reader: int) -> None:
        """Announce the first signal of each kind; quit on a second SIGINT that the main thread does not see."""
        answered: set[int] = set()
        while True:
            for number in os.read(reader, 64):
                if number == _END:
                    os.close(reader)
                    return
                if number in _SIGNALS and number not in answered:
                    answered.add(number)
                    _write_line(_ANNOUNCEMENTS[signal.Signals(number)])
                elif number == signal.SIGINT and not self._is_over.wait(_PATIENCE_S):
                    _write_line("Interrupted.")
                    os._exit(130)


def _write_line(text: str) -> None:
    """Write to standard error past Python's buffers, whose locks the main thread may hold."""
    is_terminal = sys.__stderr__ is not None and sys.__stderr__.isatty()
    # on a terminal, overwrite the rest of a progress bar, and show the cursor that it hides
    line = f"\r\x1b[K{text}\x1b[?25h\n" if is_terminal else f"{text}\n"
    try:
        os.write(2, line.encode())
    except OSError:
        # the terminal is closed
        pass
