"""Commands as processes of their own."""

from __future__ import annotations

import signal


def listen_to_sigint() -> None:
    """``preexec_fn`` of what is to be interrupted: who runs the tests in the background of a script may not listen."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
