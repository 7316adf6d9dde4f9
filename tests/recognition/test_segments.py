from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

from stateless_transducer.data.corpora.espeak import Espeak, Voice
from stateless_transducer.recognition import segments
from stateless_transducer.recognition.config import SegmentConfig
from stateless_transducer.recognition.segments import Energy, Everything, Silero, cut, make_voice_activity

RATE = 16000
VOICES = ["silero", "energy", "none"]


def _voice(name):
    if name == "silero":
        pytest.importorskip("onnxruntime", reason="silero-vad runs on it: pip install '.[vad]'")
        if segments._lacking_for_silero():
            pytest.skip(segments._lacking_for_silero())
    return make_voice_activity(name)


def _noise(seconds, rate=RATE, level=0.1):
    return (level * np.random.default_rng(3).standard_normal(round(seconds * rate))).astype(np.float32)


def _cut(sound, name="energy", max_segment_s=20.0, rate=RATE):
    blocks = [sound] if isinstance(sound, np.ndarray) else sound
    return list(cut(blocks, rate, SegmentConfig(max_segment_s=max_segment_s), _voice(name)))


def _covered(pieces, num_samples):
    """Which samples are in a piece; none may be in two."""
    times = np.zeros(num_samples, np.int64)
    for piece in pieces:
        times[piece.start : piece.start + len(piece.samples)] += 1
    assert times.max(initial=0) <= 1
    return times > 0


@pytest.fixture(scope="module")
def spoken():
    """A minute of sentences with silences of up to three seconds, and which samples are speech."""
    pytest.importorskip("espeakng_loader", reason="the sentences are spoken by espeak-ng: pip install '.[demo]'")
    espeak, rng = Espeak(), np.random.default_rng(0)
    sounds, is_speech = [_noise(0.5, level=1e-4)], [np.zeros(RATE // 2, bool)]
    for i in range(12):
        samples = espeak.say("今天天气很好，我们去公园散步。", Voice("m3", 30 + 5 * i, 50, 160)) / 32768
        wave = segments.resample(samples.astype(np.float32), espeak.sample_rate, RATE)
        pause = _noise(rng.uniform(0.1, 3.0), level=1e-4)
        sounds += [wave, pause]
        is_speech += [np.abs(wave) > 0.02, np.zeros(len(pause), bool)]
    return np.concatenate(sounds), np.concatenate(is_speech)


@pytest.mark.parametrize("name", VOICES)
def test_sound_up_to_the_limit_is_one_piece_untouched(name):
    sound = np.concatenate([np.zeros(RATE), _noise(8.0), np.zeros(RATE)]).astype(np.float32)
    (piece,) = _cut(np.split(sound, 8), name, max_segment_s=10.0)
    assert piece.start == 0
    np.testing.assert_array_equal(piece.samples, sound)


def test_sound_a_little_longer_is_cut():
    assert len(_cut(_noise(10.01), "none", max_segment_s=10.0)) == 2


@pytest.mark.parametrize("name", VOICES)
@pytest.mark.parametrize("max_segment_s", [4.0, 20.0])
def test_pieces_hold_all_speech_and_keep_the_limit(spoken, name, max_segment_s):
    sound, is_speech = spoken
    pieces = _cut(sound, name, max_segment_s)
    covered = _covered(pieces, len(sound))
    assert covered[is_speech].all()
    assert max(len(piece.samples) for piece in pieces) <= max_segment_s * RATE
    for piece in pieces:
        np.testing.assert_array_equal(piece.samples, sound[piece.start : piece.start + len(piece.samples)])
    if name != "none":
        assert covered.mean() < 0.95 and len(pieces) >= 6


@pytest.mark.parametrize("name", VOICES)
def test_pieces_do_not_depend_on_the_blocks(spoken, name):
    sound, _ = spoken
    whole = _cut(sound, name, 5.0)
    for size in (1000, 44321):
        pieces = _cut(np.split(sound, range(size, len(sound), size)), name, 5.0)
        assert [piece.start for piece in pieces] == [piece.start for piece in whole]
        assert [len(piece.samples) for piece in pieces] == [len(piece.samples) for piece in whole]


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
@pytest.mark.parametrize("name", ["silero", "energy"])
def test_speech_is_found_at_other_rates(spoken, name, rate):
    sound, is_speech = spoken
    at_rate = segments.resample(sound, RATE, rate)
    places = (np.flatnonzero(is_speech) * rate // RATE).clip(max=len(at_rate) - 1)
    assert _covered(_cut(at_rate, name, rate=rate), len(at_rate))[places].mean() > 0.999


@pytest.mark.parametrize("name", ["silero", "energy"])
def test_direct_current_does_not_count_as_sound(spoken, name):
    sound, is_speech = spoken
    covered = _covered(_cut(sound + np.float32(0.2), name), len(sound))
    assert covered[is_speech].all() and covered.mean() < 0.95


@pytest.mark.parametrize("name", ["silero", "energy"])
def test_silence_has_no_pieces(name):
    assert _cut(np.zeros(60 * RATE, np.float32), name) == []


def test_everything_leaves_nothing_out():
    sound = _noise(61.7)
    pieces = _cut(sound, "none", 7.0)
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), sound)


def test_speech_without_end_is_cut_at_the_quietest_place():
    sound = _noise(30.0)
    sound[8 * RATE : 8 * RATE + RATE // 2] *= 0.1  # too early
    sound[14 * RATE : 14 * RATE + RATE // 2] *= 0.2
    pieces = _cut(sound, "energy")
    assert 14.0 < pieces[1].start / RATE < 14.5
    assert pieces[0].start + len(pieces[0].samples) == pieces[1].start


def test_steady_loud_sound_is_not_taken_for_silence():
    tone = (0.3 * np.sin(np.arange(60 * RATE) * 0.1)).astype(np.float32)
    assert _covered(_cut(tone), len(tone)).all()


@pytest.mark.parametrize("seed", range(20))
def test_cutter_loses_no_frame_of_speech(seed):
    rng = np.random.default_rng(seed)
    runs = rng.integers(1, 60, 40)
    speech = np.concatenate([np.full(run, i % 2) for i, run in enumerate(runs)])
    loudness = rng.uniform(-60, 0, len(speech))
    cutter = segments._Cutter(50)
    regions = [*cutter.regions(speech, loudness), *cutter.finish()]
    covered = np.zeros(len(speech), int)
    for start, end in regions:
        assert 0 < end - start <= 50
        covered[start:end] += 1
    assert covered.max() == 1 and (covered[speech == 1] == 1).all()
    assert [start for start, _ in regions] == sorted(start for start, _ in regions)


def test_silero_is_found_without_importing_its_package(spoken):
    voice = _voice("silero")
    assert isinstance(voice, Silero)
    voice.listen()
    assert "silero_vad" not in sys.modules


def test_without_silero_the_loudness_decides_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(segments, "find_spec", lambda name: None)
    voice = make_voice_activity("auto")
    assert isinstance(voice, Energy) and caplog.records == []
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            list(cut([_noise(21.0)], RATE, SegmentConfig(), voice))
    (record,) = caplog.records
    assert record.getMessage().startswith("silero-vad is not installed, so long sound is cut by loudness")
    with pytest.raises(ValueError, match="`vad=silero`: silero-vad is not installed: pip install .*vad"):
        make_voice_activity("silero")
    assert isinstance(make_voice_activity("none"), Everything)


def test_bad_limit_is_named():
    with pytest.raises(ValueError, match=r"`max_segment_s` must be in 2..300 s, but is 0.5"):
        SegmentConfig(max_segment_s=0.5)
