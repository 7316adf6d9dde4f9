"""A real server on a loopback port, and what asks it."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import httpx

from stateless_transducer.commands.serve import _listening
from stateless_transducer.server.app import Service
from stateless_transducer.server.config import BatchConfig
from stateless_transducer.server.engine import PiecewiseEngine
from stateless_transducer.server.lifecycle import _Server, configure


@contextmanager
def served(engine, **options):
    """The address of a server that runs in a thread."""
    with running(Service(engine, "talker", **options)) as address:
        yield address


@contextmanager
def running(service):
    """The address of a service in a server that runs in a thread."""
    with _listening("127.0.0.1", 0) as listener:
        server = _Server(configure(service), service, lambda line: None)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def slowed(recognizer, *, batches_at_once=0):
    """An engine that recognizes nothing before it may: the engine, that it has begun, that it may go on.

    Args:
        recognizer: the model.
        batches_at_once: so many batches need no leave.
    """
    engine = PiecewiseEngine(recognizer, BatchConfig())
    has_begun, may_go_on, recognize = threading.Event(), threading.Event(), engine._batcher._answers_to
    left = iter(range(batches_at_once))

    def slowly(pieces):
        if next(left, None) is None:
            has_begun.set()
            assert may_go_on.wait(20)
        return recognize(pieces)

    engine._batcher._answers_to = slowly
    yield engine, has_begun, may_go_on
    may_go_on.set()


def ask(address, path, **fields):
    """The answer about a sound file."""
    with path.open("rb") as file:
        return httpx.post(
            f"{address}/v1/audio/transcriptions", files={"file": (path.name, file)}, data=fields, timeout=60
        )


def wait(condition):
    """Until it holds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to be")
