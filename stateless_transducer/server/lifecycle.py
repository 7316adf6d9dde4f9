"""The server's life: from the first request to an end that loses nothing that can still be answered."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from stateless_transducer.server.app import Service

_GRACE_S = 30.0
"""Requests that have begun may take so long to come to their end; then they are given up."""
_MOST_BYTES_A_MESSAGE = 2**20


def serve(
    service: Service,
    listener: socket.socket,
    *,
    certificate: tuple[Path, Path | None] | None = None,
    has_access_log: bool = False,
    say: Callable[[str], None],
) -> None:
    """Until SIGINT or SIGTERM; a second one gives up what is still being worked on.

    Args:
        service: the application, which closes its engine at the end.
        listener: takes the connections.
        certificate: file and key, for https.
        has_access_log: print a line for each request.
        say: tells the user a line.
    """
    file, key = certificate or (None, None)
    config = uvicorn.Config(
        service.app,
        log_level="info" if has_access_log else "warning",
        access_log=has_access_log,
        ssl_certfile=file,
        ssl_keyfile=key,
        ws_max_size=_MOST_BYTES_A_MESSAGE,
        timeout_graceful_shutdown=int(_GRACE_S) + 10,
    )
    # uvicorn raises the interrupt once more when all is closed
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, service, say).run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn's, but live sound is told what is final before it is closed, and giving up answers with a status."""

    def __init__(self, config: uvicorn.Config, service: Service, say: Callable[[str], None]) -> None:
        super().__init__(config)
        self._service, self._say, self._was_interrupted = service, say, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._was_interrupted |= sig == signal.SIGINT
        if self.should_exit:
            self._service.give_up()
        super().handle_exit(sig, frame)
        # at a second interrupt uvicorn would drop the connections, before they have their answer
        self.force_exit = False

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        uploads, live = self._service.num_uploads, self._service.num_live
        if uploads or live:
            again = "Ctrl-C again" if self._was_interrupted else "another signal"
            self._say(f"finishing {uploads} sound files and {live} live sounds; {again} gives them up")
        timer = asyncio.get_running_loop().call_later(_GRACE_S, self._service.give_up)
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._service.end_live(), _GRACE_S)
            await super().shutdown(sockets)
        finally:
            timer.cancel()
