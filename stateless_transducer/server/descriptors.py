"""Accepting connections when no file descriptor is free."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_LOG = logging.getLogger("uvicorn.error")
_SECONDS_PER_LINE = 60.0
_MOST_AT_ONCE = 10_000
"""Connections to close before the server works on; more would keep it from its clients."""


class SpareDescriptor:
    """Closes the connections that wait when descriptors are exhausted, and logs at most one line per minute.

    asyncio alone logs each failed `accept` with a traceback, thousands per second, and schedules a retry for each, so
    that it does not recover. The spare descriptor makes room to accept a connection and close it, so that the client
    gets an answer and the queue is empty until the next try, a second later.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)
        self._num_closed = 0
        self._next_line_at = -float("inf")

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Exception handler of the event loop."""
        listener, error = context.get("socket"), context.get("exception")
        if listener is None or not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
            return
        self._num_closed += self._close_waiting(listener.fileno())
        if self._clock() >= self._next_line_at:
            _LOG.warning(
                f"No file descriptor is free (limit {_descriptor_limit()}): closed "
                f"{self._num_closed} connections. Raise the limit (`ulimit -n`), or limit the clients in a proxy."
            )
            self._num_closed, self._next_line_at = 0, self._clock() + _SECONDS_PER_LINE

    def close(self) -> None:
        """Give the spare descriptor back."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _close_waiting(self, descriptor: int) -> int:
        """Close the connections that wait at a listening socket, which does not block; return their number."""
        self.close()
        listener = socket.socket(fileno=descriptor)
        num_closed = 0
        # until no connection waits, or another thread has taken the descriptor
        with suppress(OSError):
            while num_closed < _MOST_AT_ONCE:
                listener.accept()[0].close()
                num_closed += 1
        listener.detach()
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)
        return num_closed


def _descriptor_limit() -> str:
    """Return the most descriptors of this process, for a message."""
    try:
        import resource
    except ModuleNotFoundError:
        return "unknown"
    return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
