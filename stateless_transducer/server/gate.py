"""Checks of requests before the application reads them: host, origin and key, size, time and number of uploads."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stateless_transducer.server.errors import error_response

_POLICY_VIOLATION = 1008
_CLOSE = {"Connection": "close"}


@dataclass(frozen=True)
class Access:
    """Clients that may use the server."""

    origins: Sequence[str] = ()
    """Other web pages that may send requests and read the answers; ``*``: all."""
    hosts: Sequence[str] = ()
    """Host names under which the server is reached, besides localhost and addresses; ``*``: all."""
    api_key: str | None = None
    """Key that requests below ``/v1`` and ``/metrics`` must have; None: none."""


class AccessGate:
    """Refuses requests by host, origin and key.

    A page of another origin can send a form or open a WebSocket without asking (so the origin is checked), and can let
    its own host name lead to this machine (so the host is).
    """

    def __init__(self, app: ASGIApp, access: Access, count: Callable[[int], None]) -> None:
        """``count`` is called with the status of each answer."""
        self._app, self._access, self._count = app, access, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(message["status"])
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        refusal = self._refusal(scope, Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, guarded)
        elif scope["type"] == "websocket":
            # before it is accepted: the client gets status 403
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": refusal[1]})
        else:
            await error_response(*refusal)(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str, dict[str, str]] | None:
        """Status, message and headers; None: the request may pass."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._is_own_host(host):
            name = _host_name(host)
            return 403, f"The server is not known as {name!r}. Start it with `--allow-host {name}`.", {}
        changes_something = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if origin is not None and changes_something and not self._is_allowed_origin(origin, host):
            return 403, f"Pages of {origin} may not use this server. Start it with `--allow-origin {origin}`.", {}
        if self._access.api_key is not None and scope["path"].startswith(("/v1/", "/metrics")):
            if not hmac.compare_digest(_sent_key(scope, headers).encode(), self._access.api_key.encode()):
                message = "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`."
                return 401, message, {"WWW-Authenticate": "Bearer"}
        return None

    def _is_own_host(self, host: str) -> bool:
        name = _host_name(host)
        hosts = {allowed.lower() for allowed in self._access.hosts}
        return _is_address(name) or name == "localhost" or name.endswith(".localhost") or bool(hosts & {name, "*"})

    def _is_allowed_origin(self, origin: str, host: str | None) -> bool:
        # behind a proxy that ends https, the scheme differs
        is_same = host is not None and origin.partition("://")[2].lower() == host.lower()
        return is_same or origin in self._access.origins or "*" in self._access.origins


class UploadGate:
    """Bounds uploads in number, size and time before they are stored anywhere.

    Args:
        app: The application.
        uploads: Uploads in progress.
        max_bytes: Largest body.
        idle_timeout_s: Longest wait for the next part of a body.
        upload_timeout_s: Longest time for a whole body.
    """

    def __init__(
        self, app: ASGIApp, uploads: Uploads, *, max_bytes: int, idle_timeout_s: float, upload_timeout_s: float
    ) -> None:
        self._app, self._uploads, self._max_bytes = app, uploads, max_bytes
        self._idle_timeout_s, self._upload_timeout_s = idle_timeout_s, upload_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope))
        if refusal is not None:
            await error_response(*refusal)(scope, receive, send)
            return
        slot = scope["upload_slot"] = self._uploads.take()

        async def release_before_end(message: Message) -> None:
            # a client that sends the next file as soon as it has its answer must find the slot free
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                slot.release()
            await send(message)

        try:
            await self._app(scope, self._limited(receive), release_before_end)
        finally:
            slot.release()

    def _refusal(self, headers: Headers) -> tuple[int, str, dict[str, str]] | None:
        uploads = self._uploads
        if uploads.is_ending:
            return 503, "The server is being stopped.", _CLOSE
        if uploads.count >= uploads.limit:
            message = f"{uploads.count} sounds are being transcribed; try again later."
            return 503, message, {"Retry-After": "10", **_CLOSE}
        stated = headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > self._max_bytes:
            return 413, self._too_large, _CLOSE
        return None

    @property
    def _too_large(self) -> str:
        return f"The request is larger than {self._max_bytes / 2**20:g} MiB."

    def _limited(self, receive: Receive) -> Receive:
        """The body, until it is too large or too slow."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._upload_timeout_s
        num_bytes, is_whole = 0, False

        async def limited() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:
                # the only message to come is that the client has disconnected
                return await receive()
            left_s = max(0.0, deadline - loop.time())
            try:
                part = await asyncio.wait_for(receive(), min(self._idle_timeout_s, left_s))
            except asyncio.TimeoutError:
                bound = (
                    f"nothing came for {self._idle_timeout_s:g} s"
                    if left_s > self._idle_timeout_s
                    else f"it took longer than {self._upload_timeout_s:g} s"
                )
                raise HTTPException(408, f"The request is incomplete: {bound}.", _CLOSE) from None
            num_bytes += len(part.get("body", b""))
            is_whole = not part.get("more_body", False)
            if num_bytes > self._max_bytes:
                raise HTTPException(413, self._too_large, _CLOSE)
            return part

        return limited


class Uploads:
    """The uploads in progress, of which there may be ``limit``."""

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.count: int = 0
        self.is_ending: bool = False

    def take(self) -> Slot:
        """A slot for one more upload."""
        self.count += 1
        return Slot(self)


class Slot:
    """The place of one upload."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads, self._is_taken = uploads, True

    def release(self) -> None:
        """Free the place; more than once does no harm."""
        self._uploads.count -= self._is_taken
        self._is_taken = False


def _host_name(host: str) -> str:
    """The name or address in a Host header, without the port, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _sent_key(scope: Scope, headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    # browsers cannot set headers of a WebSocket
    values = parse_qs(scope["query_string"].decode(errors="replace")).get("api_key", [])
    return values[0] if scope["type"] == "websocket" and values else ""
