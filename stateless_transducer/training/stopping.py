"""Being asked to stop: a pre-emptible machine, a queue's time limit, Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """Whether SIGTERM or SIGINT has come since `listen`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        """Of the signal."""

    def listen(self) -> None:
        """From now on; of a process's main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # a process that another one started may have been told not to listen to SIGINT
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
