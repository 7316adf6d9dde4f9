"""Python programs in processes of their own that do not import torch again.

Importing torch and lhotse takes seconds of CPU time, more than most of what tests run. So one server per test process
imports them once, and forks. Everything else is as in a new interpreter: modules of the package have run nothing yet.
"""

from __future__ import annotations

import atexit
import io
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import socketserver
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import thread
from contextlib import AbstractContextManager
from functools import cache
from multiprocessing import forkserver
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO

# the server imports `freeze`, which lies beside this file
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "lhotse",
        "torch._dynamo",  # DistributedDataParallel imports it
        "torch.distributed.launcher.api",
        "stateless_transducer.data.fbank",
        "torch.utils.tensorboard",
        "stateless_transducer.cli",
        "stateless_transducer.decoding.search",
        "stateless_transducer.training.task",
        "stateless_transducer.commands.train",
        "stateless_transducer.commands.decode",
        "stateless_transducer.commands.transcribe",
        "freeze",
    ]
)


class Program:
    """A Python program that has been started, with the part of `subprocess.Popen`'s interface that tests need.

    It is the leader of a session, so `os.killpg` reaches its children as well.

    Args:
        words: what follows ``python`` on a command line, from ``-m`` or the path of a script on.
        streams: descriptors of its standard streams, which are closed here; None: `stderr` reads the last one.
        folder: working directory; None: this one.
        environment: its environment variables; None: those of this process.
    """

    def __init__(
        self,
        words: Sequence[str],
        streams: Sequence[int] | None = None,
        *,
        folder: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.stderr: IO[str] = io.StringIO()
        if streams is None:
            reader, writer = os.pipe()
            self.stderr = open(reader, encoding="utf-8")
            streams = [os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY), writer]
        arguments = (
            [str(word) for word in words],
            str(folder or os.getcwd()),
            dict(os.environ if environment is None else environment),
        )
        self._process = _SERVER.Process(target=_run, args=([_Descriptor(stream) for stream in streams], *arguments))
        self._process.start()
        for stream in streams:
            os.close(stream)
        self.pid: int = self._process.ident or 0

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end; return the exit status, negative for a signal, or None after the timeout."""
        self._process.join(timeout)
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.wait(0)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def rest(self) -> str:
        """Read the rest of ``stderr``, and wait for the end."""
        with self.stderr:
            text = self.stderr.read()
        self.wait()
        return text


class _Descriptor:
    """A file descriptor that can be sent to a new process, where it is a number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self):
        return _receive, (DupFd(self._number),)


def _receive(descriptor) -> int:
    return descriptor.detach()


def _run(streams: Sequence[int], words: list[str], folder: str, environment: Mapping[str, str]) -> None:
    """Run a program as ``python`` would."""
    # the program's own child processes start as usual, except for ranks, which would import torch anew
    multiprocessing.set_start_method(None, force=True)
    from stateless_transducer.training import distributed

    distributed._START_METHOD = "fork"
    # a rank is forked from a thread of a pool, and would wait for that thread at its end
    os.register_at_fork(after_in_child=thread._threads_queues.clear)  # pyright: ignore[reportAttributeAccessIssue]
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", 1, encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, folder)
            # runpy warns of a module that the server has imported
            sys.modules.pop(words[1], None)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
            runpy.run_path(os.path.abspath(words[0]), run_name="__main__")
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


_CLIENT = """#!{python} -ISE
# stands in for `python`: has the test process start the program, hands on signals, and ends as the program does
import json, os, signal, socket, sys
words = [word for word in sys.argv[1:] if word != "-u"]
request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
signals = signal.SIGINT, signal.SIGTERM
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
with socket.socket(socket.AF_UNIX) as server, server.makefile("r") as answers:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(request)
    server.shutdown(socket.SHUT_WR)
    pid = int(answers.readline())
    for number in signals:
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    status = int(answers.readline())
    if status >= 0:
        sys.exit(status)
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
"""


class _Requests(socketserver.BaseRequestHandler):
    """Starts a program for a client, and sends it the process id and the exit status."""

    def handle(self) -> None:
        _, streams, _, _ = socket.recv_fds(self.request, 1, 3)
        with self.request.makefile("rb") as lines:
            words, folder, environment = json.load(lines)
        program = Program(words, streams, folder=folder, environment=environment)
        self.request.sendall(f"{program.pid}\n".encode())
        self.request.sendall(f"{program.wait()}\n".encode())


@cache
def interpreter() -> Path:
    """An executable for shell scripts that runs ``-m <module>`` and scripts as ``python`` does, but starts at once."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    client, address = folder / "python", str(folder / "socket")
    client.write_text(_CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    server = socketserver.ThreadingUnixStreamServer(address, _Requests)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    atexit.register(shutil.rmtree, folder)
    return client


def dask_workers() -> AbstractContextManager[object]:
    """Return a context in which Dask forks the workers of a new cluster from the server."""
    import dask

    # the server must run before Dask, which would have it import other packages
    forkserver.ensure_running()
    return dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
