from __future__ import annotations

import numpy as np
import pytest

from stateless_transducer.decoding.greedy_streaming import PartialHypothesis, greedy_search_chunk

BLANK, UNKNOWN = 0, 2


class _Table:
    """Says what the frame asks for (one-hot times 4), unless the last token is 5: then the logit of 3 is higher.

    Its decoder's output is the last token.
    """

    context_size = 2

    def __init__(self):
        self.contexts = []

    def predict(self, contexts):
        self.contexts += contexts.tolist()
        return contexts[:, 1:].astype(np.float32)

    def join(self, encoder_out, decoder_out):
        return 4 * encoder_out + 9 * (decoder_out == 5) * np.eye(6, dtype=np.float32)[3]


def _frames(*wanted):
    """(N, T) ids -> (N, T, D)."""
    return np.eye(6, dtype=np.float32)[np.array(wanted)]


def _begin(count=1):
    return [PartialHypothesis.begin(2, BLANK) for _ in range(count)]


def test_symbols_are_the_likeliest_of_each_frame_with_time_and_probability():
    model, (found,) = _Table(), _begin()
    greedy_search_chunk(model, _frames([0, 4, 0, 1]), [found], {BLANK})
    assert (found.tokens, found.frames, found.num_frames, found.num_trailing_blanks) == ([4, 1], [1, 3], 4, 0)
    # one logit of 4, five of 0
    wanted = np.log(np.exp(4) / (np.exp(4) + 5))
    assert found.log_probs == pytest.approx([wanted, wanted])
    # nothing stands before the first blank; then the decoder is asked for new contexts only
    assert model.contexts == [[-1, 0], [0, 4], [4, 1]]


def test_next_frame_hears_what_was_said():
    (found,) = _begin()
    greedy_search_chunk(_Table(), _frames([5, 0, 0]), [found], {BLANK})
    assert found.tokens == [5, 3] and found.frames == [0, 1]


def test_chunks_go_on_where_the_last_one_ended():
    (whole,), (cut,) = _begin(), _begin()
    wanted = [0, 5, 0, 0, 4, 4, 0, 1, 0]
    greedy_search_chunk(_Table(), _frames(wanted), [whole], {BLANK})
    for start in (0, 3, 6):
        greedy_search_chunk(_Table(), _frames(wanted[start : start + 3]), [cut], {BLANK})
    for name in ("tokens", "frames", "log_probs", "context", "num_frames", "num_trailing_blanks"):
        assert getattr(whole, name) == getattr(cut, name)


def test_unknown_token_is_silence():
    (found,) = _begin()
    greedy_search_chunk(_Table(), _frames([4, 2, 2]), [found], {BLANK, UNKNOWN})
    assert found.tokens == [4] and found.num_trailing_blanks == 2 and found.context == [0, 4]


def test_streams_are_apart():
    found = _begin(3)
    greedy_search_chunk(_Table(), _frames([5, 0, 0], [0, 0, 0], [0, 4, 4]), found, {BLANK})
    assert [each.tokens for each in found] == [[5, 3], [], [4, 4]]
    assert [each.num_trailing_blanks for each in found] == [1, 3, 0]


def test_hypothesis_behind_an_endpoint_keeps_the_context_of_the_last_words():
    model, (said,) = _Table(), _begin()
    greedy_search_chunk(model, _frames([5]), [said], {BLANK})
    after = said.next(BLANK)
    assert (after.tokens, after.num_frames, after.num_trailing_blanks, after.context) == ([], 0, 0, [0, 5])
    greedy_search_chunk(model, _frames([0]), [after], {BLANK})
    assert after.tokens == [3] and after.frames == [0], "5 should still be heard"


def test_hypothesis_behind_silence_begins_anew_with_its_second_token():
    """As sherpa-onnx: the first one is still judged by what was said before the silence."""
    model, (said,) = _Table(), _begin()
    greedy_search_chunk(model, _frames([5]), [said], {BLANK})
    silence = said.next(BLANK)
    fresh = silence.next(BLANK)
    assert fresh.context == [-1, 0]
    greedy_search_chunk(model, _frames([0, 0]), [fresh], {BLANK})
    assert fresh.tokens == [3] and model.contexts[-1] == [0, 3]
