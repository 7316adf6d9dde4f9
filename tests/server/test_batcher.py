"""Sounds of many people, recognized together: pieces, and chunks of live sound."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_talker import say

from stateless_transducer.recognition.segments import Piece
from stateless_transducer.recognition.streaming import StreamingRecognizer
from stateless_transducer.recognition.transcript import Segment
from stateless_transducer.server.batcher import Batcher, ClosedError
from stateless_transducer.server.config import BatchConfig
from stateless_transducer.server.live import StreamingSession, stream_batcher

RATE = 1000


def _piece(seconds, start=0):
    return Piece(start, np.zeros(round(seconds * RATE), np.float32))


def _seconds(piece):
    return len(piece.samples) / RATE


def _segment(piece):
    end = (piece.start + len(piece.samples)) / RATE
    return Segment(piece.start / RATE, end, f"{piece.start}", (), (), ())


class Gate:
    """A recognizer that waits until it is told to go on, and keeps what it was given."""

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
    made = Batcher(gate, _seconds, batch_seconds=10.0, max_wait_ms=0.0)
    yield made
    gate.may_go_on.set()
    made.close()


def test_what_waits_is_recognized_together_up_to_the_limit(gate, batcher):
    first = batcher.submit(_piece(4, start=1))
    assert gate.has_begun.wait(10)
    # while the first one is worked on, others come; the fourth of them does not fit
    others = [batcher.submit(_piece(4, start=start)) for start in (2, 3, 4, 5)]
    assert batcher.waiting_s == 20
    gate.may_go_on.set()
    assert [each.result(10).text for each in (first, *others)] == ["1", "2", "3", "4", "5"]
    assert gate.batches == [[1], [2, 3, 4], [5]]


def test_one_bad_sound_does_not_spoil_the_others(gate, batcher):
    first = batcher.submit(_piece(1, start=1))
    assert gate.has_begun.wait(10)
    others = [batcher.submit(_piece(1, start=start)) for start in (12, 13, 14)]
    gate.may_go_on.set()
    assert first.result(10).text == "1"
    assert [others[i].result(10).text for i in (0, 2)] == ["12", "14"]
    with pytest.raises(ValueError, match="no luck"):
        others[1].result(10)
    # together first, and then each alone
    assert gate.batches == [[1], [12, 13, 14], [12], [13], [14]]
    assert batcher.submit(_piece(1, start=7)).result(10).text == "7" and batcher.waiting_s == 0


def test_answers_of_another_number_reach_somebody_too():
    batcher = Batcher(lambda pieces: [], _seconds, max_wait_ms=0.0)
    with pytest.raises(ValueError, match="shorter"):
        batcher.submit(_piece(1)).result(10)
    batcher.close()


def test_who_has_gone_away_is_not_worked_for(gate, batcher):
    batcher.submit(_piece(1, start=1))
    assert gate.has_begun.wait(10)
    gone, kept = (batcher.submit(_piece(1, start=start)) for start in (2, 3))
    assert gone.cancel()
    gate.may_go_on.set()
    assert kept.result(10).text == "3"
    assert gate.batches == [[1], [3]]


def test_closing_ends_behind_the_batch_that_is_worked_on(gate):
    batcher = Batcher(gate, _seconds, max_wait_ms=0.0)
    first = batcher.submit(_piece(1, start=1))
    assert gate.has_begun.wait(10)
    later = [batcher.submit(_piece(1, start=start)) for start in (2, 3)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.may_go_on.set()
    closing.join(10)
    assert first.result(0).text == "1" and gate.batches == [[1]]
    for each in later:
        with pytest.raises(ClosedError):
            each.result(0)
    with pytest.raises(ClosedError):
        batcher.submit(_piece(1))
    batcher.close()


def test_live_sounds_are_decoded_together_with_the_results_of_each_alone(live_talker, monkeypatch):
    recognizer = StreamingRecognizer.from_pretrained(live_talker, chunk_ms=160, left_ms=640, device="cpu")
    waves = [say("今天气很好吗"[n:], np.random.default_rng(n)) for n in range(4)]

    def final(wave, batcher):
        session = StreamingSession(recognizer, batcher, 16000)
        heard = [result for block in np.array_split(wave, 5) for result in session.accept(block)]
        return [result for result in (*heard, *session.finish()) if result.is_final]

    numbers, advance = [], recognizer.advance
    monkeypatch.setattr(recognizer, "advance", lambda streams: numbers.append(len(streams)) or advance(streams))
    batcher = stream_batcher(recognizer, BatchConfig(max_wait_ms=0.0))
    alone = [final(wave, batcher) for wave in waves]
    assert set(numbers) == {1} and all(results[-1].segment.text for results in alone)
    batcher.close()
    batcher = stream_batcher(recognizer, BatchConfig(max_wait_ms=300.0))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda wave: final(wave, batcher), waves))
    batcher.close()
    assert 4 in numbers
    assert [[result.segment.text for result in results] for results in together] == [
        [result.segment.text for result in results] for results in alone
    ]
