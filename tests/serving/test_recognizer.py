from __future__ import annotations

import numpy as np
import pytest
import soundfile

from stateless_transducer.audio import AudioError
from stateless_transducer.checkpoint import Checkpoint
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.serving.recognizer import Recognizer
from stateless_transducer.text.tokens import build_token_table

TOKENS = build_token_table(["今天天气很好"], "char")
SIZES = ModelConfig(vocab_size=len(TOKENS), num_layers=1, attention_dim=8, num_heads=2, feedforward_dim=8, joiner_dim=8)


@pytest.fixture(params=["greedy_search", "modified_beam_search"])
def recognizer(request):
    model = build_model(SIZES)
    # a fresh model says blank or noise; a lower blank makes it talk
    model.joiner.output_linear.bias.data[0] -= 0.5
    checkpoint = Checkpoint(model.state_dict(), SIZES, FbankConfig(), TOKENS)
    return Recognizer(checkpoint, SearchConfig(request.param))


def _noise(seconds):
    return (0.1 * np.random.default_rng(round(seconds * 100)).standard_normal(round(16000 * seconds))).astype(
        np.float32
    )


def test_batch_gives_what_each_wave_alone_gives(recognizer):
    waves = [_noise(seconds) for seconds in (1.0, 0.3, 2.2, 0.7)]
    together = recognizer.transcribe(waves, batch_seconds=100.0)
    alone = [recognizer.transcribe([wave])[0] for wave in waves]
    assert [t.text for t in together] == [t.text for t in alone] and any(t.text for t in together)
    assert [t.times for t in together] == [t.times for t in alone]
    # one utterance a batch: the same again
    assert [t.text for t in recognizer.transcribe(waves, batch_seconds=0.1)] == [t.text for t in alone]


@pytest.mark.parametrize("samples", [1, 80, 900])
def test_audio_too_short_for_one_frame_is_empty_text(recognizer, samples):
    (found,) = recognizer.transcribe([np.zeros(samples, np.float32)])
    assert found.text == "" and found.tokens == ()


def test_token_times_lie_in_the_audio_and_rise(recognizer):
    (found,) = recognizer.transcribe([_noise(2.0)])
    assert found.tokens and len(found.tokens) == len(found.times) == len(found.log_probs)
    assert list(found.times) == sorted(found.times) and 0 <= found.times[0] and found.times[-1] <= found.duration
    assert all(log_prob <= 0 for log_prob in found.log_probs)


def test_file_of_another_rate_is_resampled(recognizer, tmp_path):
    soundfile.write(tmp_path / "a.wav", _noise(1.0), 8000)
    (found,) = recognizer.transcribe([tmp_path / "a.wav"])
    assert found.duration == pytest.approx(2.0)


def test_unreadable_file_is_named(recognizer, tmp_path):
    with pytest.raises(AudioError, match="no.wav: no such file"):
        recognizer.transcribe([tmp_path / "no.wav"])
