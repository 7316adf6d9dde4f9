"""Requests to stop, in one process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from processes import listen_to_sigint

from stateless_transducer.training.stopping import StopRequest

BUSY = """
import hashlib
from stateless_transducer.training.stopping import StopRequest
with StopRequest(is_announced=True):
    print("busy", flush=True)
    # minutes inside one call, in which Python runs no signal handlers
    hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000_000)
"""


def test_interrupts_are_answered_at_once_inside_a_long_computation():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_sigint,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - started < 30


def test_block_ends_after_its_announcement_with_the_handlers_from_before(capfd):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest(is_announced=True) as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.name == "SIGTERM" and "SIGTERM" in capfd.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
