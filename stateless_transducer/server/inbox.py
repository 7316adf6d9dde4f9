"""Samples received over a WebSocket while earlier ones are decoded."""

from __future__ import annotations

import asyncio
import re

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect

from stateless_transducer.audio import check_rate
from stateless_transducer.server.engine import hotwords_in

_OPTIONS = ("sample_rate", "format", "hotwords")
_SAMPLES = {"s16le": "<i2", "f32le": "<f4"}
_MOST_WAITING_S = 600.0
"""Most seconds of one live sound that wait to be decoded."""


class Inbox:
    """Samples that a client has sent: binary messages are samples, any text message is the end."""

    def __init__(self, socket: WebSocket, timeout_s: float) -> None:
        """Read the options of a client, which are in the query of its address.

        Args:
            socket: Connection to the client.
            timeout_s: Longest wait for the next message.

        Raises:
            ValueError: An option is unknown or invalid.
        """
        given = dict(socket.query_params)
        # checked before the connection was accepted
        given.pop("api_key", None)
        unknown = sorted(set(given) - set(_OPTIONS))
        if unknown:
            raise ValueError(
                f"There is no option {', '.join(unknown)}, only {', '.join(map('`{}`'.format, _OPTIONS))}."
            )
        rate = given.get("sample_rate", "16000")
        if not re.fullmatch("[0-9]{1,9}", rate):
            raise ValueError(f"`sample_rate` must be a whole number, but is {rate[:80]}.")
        kind = given.get("format", "s16le")
        if kind not in _SAMPLES:
            raise ValueError(f"`format` must be {' or '.join(_SAMPLES)}, but is {kind}.")
        self.sample_rate: int = check_rate(int(rate))
        self.hotwords: list[str] = hotwords_in([given.get("hotwords", "")])
        self._socket, self._timeout_s, self._dtype = socket, timeout_s, np.dtype(_SAMPLES[kind])
        self._kept, self._is_over, self._news = bytearray(), False, asyncio.Event()
        self._is_whole = False

    async def fill(self) -> None:
        """Receive messages until the end.

        Raises:
            WebSocketDisconnect: The client has disconnected.
            ValueError: The client is too slow or too fast.
        """
        try:
            while not self._is_over:
                try:
                    message = await asyncio.wait_for(self._socket.receive(), self._timeout_s)
                except asyncio.TimeoutError:
                    raise ValueError(f"No samples came for {self._timeout_s:g} s.") from None
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message.get("code", 1005))
                data = message.get("bytes")
                if data is None:
                    self._is_whole = True
                    return
                self._kept += data
                if len(self._kept) > _MOST_WAITING_S * self.sample_rate * self._dtype.itemsize:
                    raise ValueError(f"{_MOST_WAITING_S:g} s of sound are waiting: send it in real time, or as a file.")
                self._news.set()
        finally:
            self.end()

    def end(self) -> None:
        """Accept no more messages."""
        self._is_over = True
        self._news.set()

    async def take(self) -> tuple[np.ndarray | None, bool]:
        """All samples received since the last call, at least one unless the sound has ended; and whether it has."""
        while not (self._whole or self._is_over):
            self._news.clear()
            await self._news.wait()
        whole, self._kept = self._kept[: self._whole], self._kept[self._whole :]
        return (np.frombuffer(bytes(whole), self._dtype) if whole else None), self._is_over

    @property
    def _whole(self) -> int:
        """Bytes of whole samples; messages may end within a sample."""
        return len(self._kept) - len(self._kept) % self._dtype.itemsize

    def check_end(self) -> None:
        """Raise ValueError if the client ended the sound in the middle of a sample."""
        if self._is_whole and self._kept:
            raise ValueError(f"The sound ends in the middle of a sample of {self._dtype.itemsize} bytes.")
