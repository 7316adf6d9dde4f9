"""Pieces of many people's sounds, recognised together."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from stateless_transducer.serving.batcher import Batcher, BusyError
from stateless_transducer.serving.segments import Piece
from stateless_transducer.serving.transcript import Segment

RATE = 1000


def _piece(seconds, start=0):
    return Piece(start, np.zeros(round(seconds * RATE), np.float32))


def _segment(piece):
    end = (piece.start + len(piece.samples)) / RATE
    return Segment(piece.start / RATE, end, f"{piece.start}", (), (), ())


class Gate:
    """A recogniser that waits until it is told to go on, and keeps what it was given."""

    def __init__(self):
        self.batches, self.has_begun, self.may_go_on = [], threading.Event(), threading.Event()

    def __call__(self, pieces):
        self.batches.append([piece.start for piece in pieces])
        self.has_begun.set()
        assert self.may_go_on.wait(10)
        if any(piece.start == 13 for piece in pieces):
            raise ValueError("no luck")
        return [_segment(piece) for piece in pieces]


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def batcher(gate):
    made = Batcher(gate, RATE, batch_seconds=10.0, max_wait_ms=0.0, max_waiting_s=30.0)
    yield made
    gate.may_go_on.set()
    made.close()


def test_what_waits_is_recognised_together_up_to_the_limit(gate, batcher):
    first = batcher.submit(_piece(4, start=1))
    assert gate.has_begun.wait(10)
    # while the first one is worked on, others come; the fourth of them does not fit
    others = [batcher.submit(_piece(4, start=start)) for start in (2, 3, 4, 5)]
    assert batcher.waiting_s == 20
    gate.may_go_on.set()
    assert [each.result(10).text for each in (first, *others)] == ["1", "2", "3", "4", "5"]
    assert gate.batches == [[1], [2, 3, 4], [5]]


def test_too_much_is_refused_and_nothing_of_it_lost(gate, batcher):
    kept = [batcher.submit(_piece(10, start=start)) for start in range(4)]
    with pytest.raises(BusyError, match="40 s of audio are waiting"):
        batcher.submit(_piece(1))
    gate.may_go_on.set()
    assert [each.result(10).text for each in kept] == ["0", "1", "2", "3"]
    # and then there is room again
    assert batcher.submit(_piece(1, start=7)).result(10).text == "7"


def test_an_error_reaches_those_whose_batch_it_was(gate, batcher):
    first = batcher.submit(_piece(1, start=1))
    assert gate.has_begun.wait(10)
    unlucky = [batcher.submit(_piece(5, start=start)) for start in (12, 13)]
    later = batcher.submit(_piece(5, start=14))
    gate.may_go_on.set()
    assert first.result(10).text == "1"
    for each in unlucky:
        with pytest.raises(ValueError, match="no luck"):
            each.result(10)
    assert later.result(10).text == "14"


def test_who_has_gone_away_is_not_worked_for(gate, batcher):
    batcher.submit(_piece(1, start=1))
    assert gate.has_begun.wait(10)
    gone, kept = (batcher.submit(_piece(1, start=start)) for start in (2, 3))
    assert gone.cancel()
    gate.may_go_on.set()
    assert kept.result(10).text == "3"
    assert gate.batches == [[1], [3]]


def test_closing_ends_what_was_begun_and_takes_no_more(gate):
    batcher = Batcher(gate, RATE, max_wait_ms=0.0)
    orders = [batcher.submit(_piece(1, start=start)) for start in range(3)]
    gate.may_go_on.set()
    batcher.close()
    assert [each.result(0).text for each in orders] == ["0", "1", "2"]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(_piece(1))
