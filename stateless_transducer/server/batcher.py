"""Work for several clients, done together by one thread, for which any number of threads wait."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class ClosedError(Exception):
    """The batcher is closed."""


@dataclass(frozen=True)
class _Order(Generic[Item, Answer]):
    item: Item
    seconds: float
    result: Future[Answer]


class Batcher(Generic[Item, Answer]):
    """Works on submitted items in order, in batches of those that wait: pieces of sounds, or streams.

    While it works on one batch, the next one is collected; only an idle thread waits for further items.

    Args:
        work: From items to their answers.
        seconds_of: Seconds of audio of an item that are to be worked on.
        batch_seconds: Seconds of audio per batch.
        max_wait_ms: Longest wait for further items when the thread is idle.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Answer]],
        seconds_of: Callable[[Item], float],
        *,
        batch_seconds: float = 100.0,
        max_wait_ms: float = 5.0,
    ) -> None:
        self._answers_to, self._seconds_of = work, seconds_of
        self._batch_seconds, self._max_wait_s = batch_seconds, max_wait_ms / 1000
        self._orders: queue.SimpleQueue[_Order[Item, Answer] | None] = queue.SimpleQueue()
        self._lock, self._waiting_s, self._is_closed = threading.Lock(), 0.0, False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that are submitted and not worked on."""
        return self._waiting_s

    def submit(self, item: Item) -> Future[Answer]:
        """Submit an item; the future gives its answer, and may be cancelled.

        Raises:
            ClosedError: the batcher is closed.
        """
        order = _Order[Item, Answer](item, self._seconds_of(item), Future())
        with self._lock:
            if self._is_closed:
                raise ClosedError("The model is being closed.")
            self._waiting_s += order.seconds
            self._orders.put(order)
        return order.result

    def close(self) -> None:
        """Stop after the current batch; waiting items fail with `ClosedError`. More than once does no harm."""
        with self._lock:
            self._is_closed = True
            self._orders.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_last = False
        while not is_last:
            orders, is_last = self._gather()
            # drop items cancelled while queued
            self._answer([order for order in orders if order.result.set_running_or_notify_cancel()])
            with self._lock:
                self._waiting_s = max(0.0, self._waiting_s - sum(order.seconds for order in orders))

    def _answer(self, orders: list[_Order[Item, Answer]]) -> None:
        if not orders:
            return
        if self._is_closed:
            for order in orders:
                order.result.set_exception(ClosedError("The model is being closed."))
            return
        try:
            answers = list(zip(orders, self._answers_to([order.item for order in orders]), strict=True))
        except Exception as err:
            if len(orders) == 1:
                orders[0].result.set_exception(err)
                return
            # one bad item must not spoil the whole batch
            for order in orders:
                self._answer([order])
            return
        for order, answer in answers:
            order.result.set_result(answer)

    def _gather(self) -> tuple[list[_Order[Item, Answer]], bool]:
        """A batch, and whether it is the last one."""
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
