"""Pieces of many people's sounds, recognized together: one thread does it, any number of others wait for their own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from stateless_transducer.recognition.segments import Piece
from stateless_transducer.recognition.transcript import Segment


class ClosedError(Exception):
    """Nothing is recognized any more."""


class _Order(NamedTuple):
    piece: Piece
    seconds: float
    result: Future[Segment]


class Batcher:
    """Recognizes what is submitted, in order, as much at once as is waiting.

    While one batch is worked on, the next one gathers; the thread waits for company only when it has nothing to do.

    Args:
        recognize: the segments of some pieces, in their order.
        sample_rate: of the pieces.
        batch_seconds: audio worked on at once.
        max_wait_ms: how long a piece waits for others when nothing is being worked on.
    """

    def __init__(
        self,
        recognize: Callable[[Sequence[Piece]], list[Segment]],
        sample_rate: int,
        *,
        batch_seconds: float = 100.0,
        max_wait_ms: float = 5.0,
    ) -> None:
        self._recognize, self._sample_rate = recognize, sample_rate
        self._batch_seconds, self._max_wait_s = batch_seconds, max_wait_ms / 1000
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._lock, self._waiting_s, self._is_closed = threading.Lock(), 0.0, False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that are submitted and not recognized."""
        return self._waiting_s

    def submit(self, piece: Piece) -> Future[Segment]:
        """The segment of a piece, when it is known. Who no longer wants it cancels it.

        Raises:
            ClosedError: the batcher is closed.
        """
        order = _Order(piece, len(piece.samples) / self._sample_rate, Future())
        with self._lock:
            if self._is_closed:
                raise ClosedError("The model is being closed.")
            self._waiting_s += order.seconds
            self._orders.put(order)
        return order.result

    def close(self) -> None:
        """End behind the batch that is worked on; what waits fails with `ClosedError`. More than once does no harm."""
        with self._lock:
            self._is_closed = True
            self._orders.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_last = False
        while not is_last:
            orders, is_last = self._gather()
            # who has gone away in the meantime
            self._answer([order for order in orders if order.result.set_running_or_notify_cancel()])
            with self._lock:
                self._waiting_s = max(0.0, self._waiting_s - sum(order.seconds for order in orders))

    def _answer(self, orders: list[_Order]) -> None:
        if not orders:
            return
        if self._is_closed:
            for order in orders:
                order.result.set_exception(ClosedError("The model is being closed."))
            return
        try:
            answers = list(zip(orders, self._recognize([order.piece for order in orders]), strict=True))
        except Exception as err:
            if len(orders) == 1:
                orders[0].result.set_exception(err)
                return
            # one bad sound must not spoil the others'
            for order in orders:
                self._answer([order])
            return
        for order, segment in answers:
            order.result.set_result(segment)

    def _gather(self) -> tuple[list[_Order], bool]:
        """A batch, and whether nothing comes behind it."""
        first = self._orders.get()
        if first is None:
            return [], True
        orders, seconds, deadline = [first], first.seconds, time.monotonic() + self._max_wait_s
        while seconds < self._batch_seconds:
            try:
                order = self._orders.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if order is None:
                return orders, True
            orders.append(order)
            seconds += order.seconds
        return orders, False
