"""One run per experiment folder."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from stateless_transducer.files import has_ended

try:
    import fcntl
except ModuleNotFoundError:
    # on Windows
    fcntl = None

_PATIENCE_S = 5.0
"""Time for the data workers of a killed run to end: they share its lock."""


@contextmanager
def run_lock(exp_dir: Path, command: str, *, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold ``<exp_dir>/run.lock`` for the length of the block; the system frees the lock of a process that dies.

    Args:
        exp_dir: existing folder of the run.
        command: command line of the run, for the message to a second one.
        warn: called if the file system has no locks; the block then runs without.

    Raises:
        ValueError: another run holds the lock; the message names it.
    """
    path = exp_dir / "run.lock"
    try:
        file = _acquire(path, exp_dir)
    except OSError as err:
        warn(f"`--exp-dir` {exp_dir} cannot be locked ({err.strerror}): make sure that no other run writes to it")
        file = None
    try:
        if file is not None:
            _write_holder(file, command)
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            file.close()


def _acquire(path: Path, exp_dir: Path) -> TextIO:
    """Open and lock the file."""
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system has no locks that end with their process")
    until = time.monotonic() + _PATIENCE_S
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(file)
            file.close()
            if _is_dead(holder) and time.monotonic() < until:
                time.sleep(0.1)
                continue
            raise ValueError(_refusal(exp_dir, holder)) from None
        except OSError:
            file.close()
            raise
        # the previous run removes the file when it ends, perhaps after it was opened here
        if _is_at(file, path):
            return file
        file.close()


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(file: TextIO, command: str) -> None:
    since = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}
    file.truncate(0)
    file.write(json.dumps(holder, ensure_ascii=False) + "\n")
    file.flush()


def _read_holder(file: TextIO) -> dict[str, Any]:
    """Read the facts about the holder; empty if it has not written them yet."""
    file.seek(0)
    try:
        holder = json.loads(file.read())
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine and has ended."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    return has_ended(holder["pid"])


def _refusal(exp_dir: Path, holder: dict[str, Any]) -> str:
    name = "another run"
    if holder:
        name = (
            f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')} ({holder.get('command')})"
        )
    return f"`exp_dir` {exp_dir} is in use by {name}. Wait for that run, stop it, or choose another folder."
