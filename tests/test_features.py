from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.numpy import load_file

from stateless_transducer.audio import resample
from stateless_transducer.features import FbankConfig, FbankStream, fbank, samples_until

NAMES = ("chirp", "noise", "short", "silence_tone")


def _tone(seconds, rate, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_fbank_equals_kaldifeats(name, golden):
    arrays = load_file(golden / "feats.safetensors")
    found = fbank(arrays[f"{name}.wav"].astype(np.float32) / 32768, FbankConfig())
    wanted = arrays[f"{name}.kaldifeat"]
    assert found.shape == wanted.shape and found.dtype == np.float32
    # near the floor, log amplifies the rounding of two different FFTs (measured: 6.2e-3)
    error = np.abs(found - wanted)
    assert error[wanted > -12].max(initial=0) < 1e-3 and error.max() < 1e-2 and error.mean() < 2e-4


def test_fbank_of_nothing_is_empty():
    assert fbank(np.zeros(0, np.float32), FbankConfig()).shape == (0, 80)


@pytest.mark.parametrize(
    "samples", [np.ones(16000, np.int16), np.ones((2, 16000), np.float32)], ids=["int16", "stereo"]
)
def test_samples_of_another_kind_are_refused(samples):
    """int16 as it is would be 90 dB too loud."""
    with pytest.raises(
        ValueError, match=rf"`samples` must be \(S,\), float, .* but are \(.*16000,?\), {samples.dtype}"
    ):
        fbank(samples, FbankConfig())


def test_bad_configuration_is_named():
    with pytest.raises(ValueError, match="`num_mel_bins` must be in 7..1000, but is 3"):
        FbankConfig(num_mel_bins=3)


@pytest.mark.parametrize("value", [0.0, 1e-6, 2000.0, math.nan])
@pytest.mark.parametrize("name", ["frame_shift_ms", "frame_length_ms"])
def test_frame_length_that_would_end_the_process_is_named(name, value):
    """The filter bank divides by it: 0 is a floating-point exception of the whole process."""
    with pytest.raises(ValueError, match=f"`{name}` must be .*, but is {value:g}"):
        FbankConfig(**{name: value})


def _in_pieces(samples, rate, size):
    stream = FbankStream(FbankConfig())
    for start in range(0, len(samples), size):
        stream.accept(samples[start : start + size], rate)
    stream.flush()
    return stream


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("seconds", [0.007, 0.1, 9.0])
def test_stream_of_pieces_gives_the_frames_of_the_whole(rate, seconds):
    samples = np.random.default_rng(0).standard_normal(round(1.3 * rate)).astype(np.float32) / 10
    stream = _in_pieces(samples, rate, round(seconds * rate))
    resampled = resample(samples, rate, 16000)
    assert stream.num_samples == len(resampled)
    # the last window of a stream waits for more sound
    wanted = fbank(resampled, FbankConfig())[: stream.num_frames]
    assert len(wanted) >= 128 and (stream.take(0, len(wanted)) == wanted).all()


def test_frames_are_known_when_samples_until_says():
    for num_frames in (1, 2, 45):
        needed = samples_until(num_frames, FbankConfig())
        for missing in (1, 0):
            stream = _in_pieces(np.zeros(needed - missing, np.float32), 16000, 100)
            assert stream.num_frames == num_frames - missing
    assert samples_until(0, FbankConfig()) == 0


def test_padding_gives_so_many_frames_of_silence():
    stream = _in_pieces(_tone(0.5, 16000), 16000, 1000)
    stream.pad(80)
    assert stream.num_frames == 80
    wanted = fbank(np.concatenate([_tone(0.5, 16000), np.zeros(stream.num_samples - 8000, np.float32)]), FbankConfig())
    assert (stream.take(0, 80) == wanted[:80]).all()
    stream.pad(3)
    assert stream.num_frames == 80


def test_stream_forgets_what_was_passed():
    stream = _in_pieces(_tone(1.0, 16000), 16000, 1000)
    kept = stream.take(40, 5)
    assert (stream.take(40, 5) == kept).all()
    # kaldi-native-fbank 1.22.3 still had an IndexError of its own
    with pytest.raises((RuntimeError, IndexError)):
        stream._computer.get_frame(39)


def test_rate_of_a_stream_must_stay():
    stream = _in_pieces(_tone(0.1, 8000), 8000, 100)
    with pytest.raises(ValueError, match="`sample_rate` must stay 8000 Hz within a stream, but is 16000"):
        stream.accept(_tone(0.1, 16000), 16000)
