"""Live sound with a model of whole utterances: how often it is heard again."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest

from stateless_transducer.recognition.segments import Energy, PieceStream
from stateless_transducer.recognition.transcript import Segment
from stateless_transducer.server.live import PiecewiseSession

RATE = 16000


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Instant:
    """Recognizes on the spot; each time takes some seconds of the clock."""

    def __init__(self, clock, takes):
        self.clock, self.takes, self.asked = clock, takes, []

    def submit(self, piece):
        self.clock.now += self.takes
        self.asked.append((piece.start / RATE, (piece.start + len(piece.samples)) / RATE))
        result: Future[Segment] = Future()
        result.set_result(Segment(*self.asked[-1], f"{len(self.asked)}", ("x",), (0.0,), (0.0,)))
        return result


@pytest.mark.parametrize(("takes", "num_partial"), [(0.0, 9), (0.1, 9), (0.3, 5), (2.0, 1)])
def test_an_utterance_is_heard_again_as_often_as_there_is_time(takes, num_partial):
    """4.8 s until the pause is known: every half a second, less often where that took more than 0.3 of the time."""
    clock = Clock()
    model = Instant(clock, takes)
    pieces = PieceStream(RATE, 20.0, Energy(), frames_at_once=8)
    session = PiecewiseSession(pieces, model, sample_rate=RATE, model_rate=RATE, clock=clock)  # pyright: ignore
    noise = 0.001 * np.random.default_rng(0).standard_normal(RATE * 6)
    noise[RATE : RATE * 5] *= 200
    heard = []
    for start in range(0, len(noise), 1600):
        # sound comes in at its own pace, also while the model works
        clock.now = max(clock.now, start / RATE)
        heard += session.accept(noise[start : start + 1600].astype(np.float32))
    heard += session.finish()
    assert [each.is_final for each in heard] == [False] * num_partial + [True]
    (start, _), *_ = model.asked
    assert 0.5 < start < 1.0
    # each hearing knows more than the one before, and the last one all of it
    ends = [end for _, end in model.asked]
    assert all(b - a >= 0.5 for a, b in zip(ends[:-1], ends[1:-1], strict=False))
    assert 5.0 < ends[-1] < 5.3
