"""Run the server, and stop it without losing requests that can still be answered."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from stateless_transducer.server.app import Service
from stateless_transducer.server.descriptors import SpareDescriptor

_GRACE_S = 30.0
"""Seconds that requests in progress have to finish when the server stops."""
_MOST_BYTES_A_MESSAGE = 2**20


def serve(
    service: Service,
    listener: socket.socket,
    *,
    certificate: tuple[Path, Path | None] | None = None,
    has_access_log: bool = False,
    say: Callable[[str], None],
) -> None:
    """Run until SIGINT or SIGTERM; a second one gives up the work in progress.

    Args:
        service: the application, which closes its engine at the end.
        listener: takes the connections.
        certificate: file and key, for https.
        has_access_log: print a line for each request.
        say: tells the user a line.
    """
    config = configure(service, certificate=certificate, has_access_log=has_access_log)
    # uvicorn raises the interrupt once more when all is closed
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, service, say).run(sockets=[listener])


def configure(
    service: Service, *, certificate: tuple[Path, Path | None] | None = None, has_access_log: bool = False
) -> uvicorn.Config:
    """The configuration of uvicorn; the arguments are `serve`'s."""
    file, key = certificate or (None, None)
    return uvicorn.Config(
        service.app,
        http=_with_timeout(service.idle_timeout_s),
        log_level="info" if has_access_log else "warning",
        access_log=has_access_log,
        ssl_certfile=file,
        ssl_keyfile=key,
        ws_max_size=_MOST_BYTES_A_MESSAGE,
        timeout_graceful_shutdown=int(_GRACE_S) + 10,
    )


def _with_timeout(timeout_s: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol of HTTP, but it closes connections whose headers take longer than ``timeout_s``."""

    class Protocol(AutoHTTPProtocol):
        # set by uvicorn's classes
        cycle: Any
        loop: asyncio.AbstractEventLoop
        transport: asyncio.Transport
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watching()
            super().connection_lost(exc)

        def _watch(self) -> None:
            has_request = self.cycle is not None and not self.cycle.response_complete
            # a WebSocket has a protocol of its own
            if has_request or self.transport.get_protocol() is not self:
                self._stop_watching()
            elif self._timer is None:
                self._timer = self.loop.call_later(timeout_s, self.transport.close)

        def _stop_watching(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Protocol


class _Server(uvicorn.Server):
    """uvicorn's server, but it sends the final results of live sounds, and answers given-up requests with a status."""

    def __init__(self, config: uvicorn.Config, service: Service, say: Callable[[str], None]) -> None:
        super().__init__(config)
        self._service, self._say, self._was_interrupted = service, say, False
        self._spare_descriptor = SpareDescriptor()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._spare_descriptor.handle)
        await super().startup(sockets)

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
            self._spare_descriptor.close()
