from __future__ import annotations

import wave

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from stateless_transducer.features import AudioError, FbankConfig, audio_duration, fbank, read_audio

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


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_read_audio_resamples_and_mixes(tmp_path, rate, suffix):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([_tone(1.0, rate), np.zeros(rate, np.float32)], axis=1), rate)
    samples = read_audio(path, 16000)
    # mp3 pads with whole frames of 1152 samples
    assert samples.dtype == np.float32 and abs(len(samples) - 16000) < 3 * 1152 * 16000 / rate
    spectrum = np.abs(np.fft.rfft(samples[2000:14000]))
    assert abs(spectrum.argmax() * 16000 / 12000 - 440) < 2
    # the mean of a tone of amplitude 0.5 and silence; mp3 at 8 kHz is rough
    assert abs(np.abs(samples[2000:14000]).max() - 0.25) < 0.03


def test_read_audio_reads_m4a(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "tone.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(_tone(1.0, 44100)[None], format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    samples = read_audio(path, 16000)
    assert abs(len(samples) - 16000) < 1600
    assert abs(audio_duration(path)[0] - 1.0) < 0.1


def _bad_files(folder):
    soundfile.write(folder / "whole.wav", _tone(1.0, 16000), 16000, subtype="PCM_16")
    data = (folder / "whole.wav").read_bytes()
    (folder / "truncated.wav").write_bytes(data[: len(data) // 2])
    with wave.open(str(folder / "empty.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
    (folder / "text.wav").write_text("this is no sound")
    (folder / "zero-bytes.wav").touch()


@pytest.mark.parametrize("read", [lambda path: read_audio(path, 16000), audio_duration], ids=["read", "duration"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.wav", "absent.wav: no such file"),
        ("truncated.wav", r"truncated.wav: truncated: its header says 32000 bytes of samples, but 15978 are there"),
        ("empty.wav", r"empty.wav: holds no samples \(0 s of audio\)"),
        ("text.wav", "text.wav: not a sound file"),
        ("zero-bytes.wav", "zero-bytes.wav: not a sound file"),
    ],
)
def test_bad_file_is_named_with_what_is_wrong(tmp_path, name, message, read):
    _bad_files(tmp_path)
    with pytest.raises(AudioError, match=message):
        read(tmp_path / name)


def test_bad_configuration_is_named():
    with pytest.raises(ValueError, match="`num_mel_bins` must be at least 7, but is 3"):
        FbankConfig(num_mel_bins=3)
