"""Begin, end and confidence of tokens, and what else may have been said, as a recognizer gives them."""

from __future__ import annotations

import numpy as np
import pytest
from model_sizes import conformer_model

from stateless_transducer.checkpoint import Checkpoint
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.recognition.config import DetailConfig, SegmentConfig
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.text.tokens import build_token_table

TOKENS = build_token_table(["今天天气很好"], "char")
SIZES = conformer_model(
    vocab_size=len(TOKENS), num_layers=1, attention_dim=8, num_heads=2, feedforward_dim=8, joiner_dim=8
)


def _recognizer(method, details=None, **options):
    model = build_model(SIZES)
    model.joiner.output_linear.bias.data[0] -= 0.5
    checkpoint = Checkpoint(model.state_dict(), SIZES, FbankConfig(), TOKENS)
    return Recognizer(checkpoint, SearchConfig(method, **options), details=details, segments=SegmentConfig(vad="none"))


def _noise(seconds):
    random = np.random.default_rng(round(seconds * 100))
    return (0.1 * random.standard_normal(round(16000 * seconds))).astype(np.float32)


@pytest.mark.parametrize("method", ["greedy_search", "modified_beam_search", "beam_search"])
def test_details_belong_to_the_tokens(method):
    for transcript in _recognizer(method).transcribe([_noise(1.0), _noise(0.4), _noise(0.01)]):
        for segment in transcript.segments:
            count = len(segment.tokens)
            assert len(segment.starts) == len(segment.ends) == len(segment.confidences) == count
            assert all(segment.start <= a < b <= segment.end for a, b in zip(segment.starts, segment.ends, strict=True))
            assert all(a <= b for a, b in zip(segment.ends[:-1], segment.starts[1:], strict=True))
            shortest = min(0.04, (segment.end - segment.start) / max(1, count)) - 2e-3
            assert all(b - a >= shortest for a, b in zip(segment.starts, segment.ends, strict=True))
            assert all(0 <= confidence <= 1 for confidence in (*segment.confidences, segment.confidence))
            assert [word.word for word in segment.words] == list(segment.text)
            assert [(word.start, word.end) for word in segment.words] == list(transcript.spans)
        assert len(transcript.spans) == len(transcript.confidences) == len(transcript.tokens)


def test_confidence_of_a_long_text_is_that_of_its_tokens():
    (segment,) = _recognizer("greedy_search").transcribe([_noise(19.0)])[0].segments
    assert len(segment.tokens) > 50 and min(segment.confidences) > 0
    assert segment.confidence == pytest.approx(np.exp(np.log(segment.confidences).mean()), abs=2e-5)
    (silent,) = _recognizer("greedy_search", blank_penalty=-100.0).transcribe([_noise(1.0)])[0].segments
    assert silent.tokens == () and silent.confidence == pytest.approx(1.0)


def test_times_of_later_segments_count_from_the_start_of_the_sound():
    recognizer = _recognizer("greedy_search")
    long = np.concatenate([_noise(19.0), _noise(8.0)])
    (transcript,) = recognizer.transcribe([long])
    assert len(transcript.segments) > 1
    last = transcript.segments[-1]
    assert last.tokens and all(last.start <= start for start in last.starts) and last.start > 5


def test_details_that_are_not_wanted_are_not_computed():
    recognizer = _recognizer("modified_beam_search", DetailConfig(align=False))
    (segment,) = recognizer.transcribe([_noise(1.0)])[0].segments
    assert segment.tokens and (segment.starts, segment.confidences, segment.confidence) == ((), (), None)
    assert segment.words == ()


@pytest.mark.parametrize("method", ["modified_beam_search", "beam_search"])
def test_alternatives_are_other_texts_of_lower_rank(method):
    recognizer = _recognizer(method, DetailConfig(nbest=3), beam_size=4)
    (segment,) = recognizer.transcribe([_noise(1.0)])[0].segments
    assert len(segment.alternatives) == 2
    assert len({segment.text, *(other.text for other in segment.alternatives)}) == 3


def test_no_hypothesis_is_refused():
    with pytest.raises(ValueError, match="`nbest` must be at least 1, but is 0"):
        DetailConfig(nbest=0)
