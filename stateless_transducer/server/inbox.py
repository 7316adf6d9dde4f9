"""What comes in over a WebSocket, taken in while what came before is worked on."""

from __future__ import annotations

import asyncio

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect

_OPTIONS = ("sample_rate", "format", "hotwords")
_SAMPLES = {"s16le": "<i2", "f32le": "<f4"}
_RATES = 1000, 384_000
_MOST_WAITING_S = 600.0
"""Of one live sound: whoever sends a file as fast as it goes should send it as a file."""


class Inbox:
    """What a client has sent and nobody has taken: binary messages are samples, any text message is the end."""

    def __init__(self, socket: WebSocket) -> None:
        """Of a client whose options are in the query of its address.

        Raises:
            ValueError: an option cannot be.
        """
        given = dict(socket.query_params)
        unknown = sorted(set(given) - set(_OPTIONS))
        if unknown:
            raise ValueError(f"There is no option {', '.join(unknown)}, but {', '.join(map('`{}`'.format, _OPTIONS))}.")
        rate = given.get("sample_rate", "16000")
        if not (rate.isdecimal() and _RATES[0] <= int(rate) <= _RATES[1]):
            raise ValueError(f"`sample_rate` must be a whole number in {_RATES[0]}..{_RATES[1]}, but is {rate}.")
        kind = given.get("format", "s16le")
        if kind not in _SAMPLES:
            raise ValueError(f"`format` must be {' or '.join(_SAMPLES)}, but is {kind}.")
        self.sample_rate = int(rate)
        self.hotwords = given.get("hotwords", "").splitlines()
        self._socket, self._dtype = socket, np.dtype(_SAMPLES[kind])
        self._kept, self._is_over, self._news = bytearray(), False, asyncio.Event()
        self._is_whole = False

    async def fill(self) -> None:
        """Until the end, or until something is wrong; what is wrong is raised."""
        try:
            while not self._is_over:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message.get("code", 1005))
                data = message.get("bytes")
                if data is None:
                    self._is_whole = True
                    return
                self._kept += data
                if len(self._kept) > _MOST_WAITING_S * self.sample_rate * self._dtype.itemsize:
                    raise ValueError(
                        f"{_MOST_WAITING_S:g} s of sound are waiting: send it as it is said, or as a file."
                    )
                self._news.set()
        finally:
            self.end()

    def end(self) -> None:
        """No more is taken in."""
        self._is_over = True
        self._news.set()

    async def take(self) -> tuple[np.ndarray | None, bool]:
        """All samples that have gathered, at least one unless no more comes; and whether that is so."""
        while not (self._whole or self._is_over):
            self._news.clear()
            await self._news.wait()
        whole, self._kept = self._kept[: self._whole], self._kept[self._whole :]
        return (np.frombuffer(bytes(whole), self._dtype) if whole else None), self._is_over

    @property
    def _whole(self) -> int:
        """Bytes of whole samples: pipes cut anywhere."""
        return len(self._kept) - len(self._kept) % self._dtype.itemsize

    def check_end(self) -> None:
        """Raise ValueError if the client said that this is all, and what came last is part of a sample."""
        if self._is_whole and self._kept:
            raise ValueError(f"The sound ends in the middle of a sample of {self._dtype.itemsize} bytes.")
