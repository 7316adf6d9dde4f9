"""Commands as processes of their own."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable


def listen_to_sigint() -> None:
    """``preexec_fn`` of what is to be interrupted: who runs the tests in the background of a script may not listen."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def children(pid: int) -> list[int]:
    """Processes that a process has started, and that have not ended."""
    found = subprocess.run(["pgrep", "-P", str(pid)], stdout=subprocess.PIPE, text=True).stdout
    return [child for child in map(int, found.split()) if is_running(child)]


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that has may keep its number, as a zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], stdout=subprocess.PIPE, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def wait_until(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Whether a condition comes true in a time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
