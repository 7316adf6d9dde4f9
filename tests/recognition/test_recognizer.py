from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from model_sizes import conformer_model

from stateless_transducer.audio import AudioError
from stateless_transducer.checkpoint import Checkpoint
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.recognition import model
from stateless_transducer.recognition.config import SegmentConfig
from stateless_transducer.recognition.model import choose_device
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.recognition.sounds import Stretch
from stateless_transducer.recognition.transcript import Transcript
from stateless_transducer.text.tokens import build_token_table

TOKENS = build_token_table(["今天天气很好"], "char")
SIZES = conformer_model(
    vocab_size=len(TOKENS), num_layers=1, attention_dim=8, num_heads=2, feedforward_dim=8, joiner_dim=8
)


@pytest.fixture
def checkpoint():
    transducer = build_model(SIZES)
    # a fresh model says blank or noise; a lower blank makes it talk
    transducer.joiner.output_linear.bias.data[0] -= 0.5
    return Checkpoint(transducer.state_dict(), SIZES, FbankConfig(), TOKENS)


@pytest.fixture(params=["greedy_search", pytest.param("modified_beam_search", marks=pytest.mark.sweep)])
def recognizer(request, checkpoint):
    return Recognizer(checkpoint, SearchConfig(request.param))


@pytest.fixture
def long_recognizer(checkpoint):
    """Cuts after 3 s, by loudness."""
    return Recognizer(checkpoint, segments=SegmentConfig("energy", max_segment_s=3.0))


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


def test_one_sound_gives_one_transcript(recognizer, tmp_path):
    path, wave = tmp_path / "a.wav", _noise(0.5)
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    (expected,) = recognizer.transcribe([path])
    assert expected.text
    with path.open("rb") as file:
        for sound in (str(path), path, Stretch(path), file, path.read_bytes(), wave, wave[None], wave[:, None]):
            assert recognizer.transcribe(sound) == expected
            with pytest.raises(ValueError, match="`sounds` must be several"):
                next(recognizer.transcribe_each(sound))
    # on some processors, a batch of two is rounded in another way
    twice = recognizer.transcribe((str(path), path))
    assert [(t.text, t.times) for t in twice] == [(expected.text, expected.times)] * 2
    assert recognizer.transcribe([]) == []


INT16 = np.random.default_rng(4).integers(-9000, 9000, 8000).astype(np.int16)
INT32 = INT16.astype(np.int32) * 65536
FLOAT = INT16.astype(np.float32) / 32768


@pytest.mark.parametrize(
    "sound",
    [
        INT16,
        INT32,
        FLOAT.astype(np.float64),
        torch.from_numpy(INT16),
        torch.from_numpy(FLOAT).requires_grad_(),
        (FLOAT, 16000),
        (16000, INT16),
        (np.int64(16000), FLOAT),
        (torch.from_numpy(FLOAT)[None], 16000),
        {"array": FLOAT, "sampling_rate": 16000, "path": None},
        {"raw": INT16, "sampling_rate": 16000},
        (np.stack([FLOAT, FLOAT]), 16000),
        {"array": np.stack([FLOAT, FLOAT], axis=1), "sampling_rate": 16000},
    ],
    ids=str,
)
def test_samples_in_any_form_give_what_their_floats_give(recognizer, sound):
    expected = recognizer.transcribe(FLOAT)
    assert expected.text and recognizer.transcribe(sound) == expected
    assert recognizer.transcribe([sound, sound]) == [expected, expected]


def test_bytes_of_8_bits_count_from_128(recognizer):
    samples = np.random.default_rng(1).integers(0, 256, 8000).astype(np.uint8)
    floats = (samples.astype(np.float32) - 128) / 128
    assert recognizer.transcribe(samples) == recognizer.transcribe(floats)


def test_samples_of_another_rate_are_resampled(recognizer, tmp_path):
    soundfile.write(tmp_path / "a.wav", FLOAT, 8000, subtype="FLOAT")
    expected = recognizer.transcribe(tmp_path / "a.wav")
    assert expected.duration == 1.0
    for sound in ((FLOAT, 8000), {"array": INT16, "sampling_rate": 8000}):
        assert recognizer.transcribe(sound) == expected
    assert recognizer.transcribe(FLOAT, sample_rate=8000) == expected
    assert recognizer.transcribe([FLOAT, tmp_path / "a.wav"], sample_rate=8000) == [expected, expected]
    assert tuple(recognizer.stream_transcribe(FLOAT, sample_rate=8000)) == expected.segments
    for rate in (0.5, 10, 2_000_000, 16000.5):
        with pytest.raises(ValueError, match=rf"`sample_rate` .* 1000\.\.1000000 Hz, .* {rate}"):
            recognizer.transcribe((FLOAT, rate))


def test_a_channel_of_samples_can_be_chosen(recognizer):
    two = np.stack([np.zeros_like(FLOAT), FLOAT])
    expected = recognizer.transcribe(FLOAT)
    for sound in ((two, 16000), (16000, two.T)):
        assert recognizer.transcribe(sound, channel=1) == expected
        with pytest.raises(AudioError, match="channels 0 to 1, but channel 2"):
            recognizer.transcribe(sound, channel=2)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        ([0.0, 0.1], "but is a float"),
        ([[0.0, 0.1]], "but is a list"),
        (np.zeros((4, 16000)), r"shape \(4, 16000\).*list\(array\)"),
        ([np.zeros((9, 16000))], r"at most 8 channels C, .* \(9, 16000\)"),
        ([np.zeros((5, 5))], r"shape \(5, 5\)"),
        ((np.zeros((1, 1, 100)), 16000), r"shape \(1, 1, 100\)"),
        (np.zeros(100, np.int64), "int16, int32, uint8, but are int64"),
        (np.zeros(100, bool), "but are bool"),
        (torch.zeros(100, dtype=torch.complex64), "but are complex64"),
        ({"array": FLOAT}, "\"sampling_rate\", a number, but has 'array'"),
        ({"samples": FLOAT, "sampling_rate": 16000}, "but has 'samples', 'sampling_rate'"),
        ([FLOAT, 16000], "but is a int"),
    ],
    ids=str,
)
def test_an_object_that_is_no_sound_is_named(recognizer, sound, message):
    with pytest.raises(ValueError, match=message):
        recognizer.transcribe(sound)


def test_the_device_is_chosen_as_on_the_command_line(checkpoint, monkeypatch):
    requested = []
    monkeypatch.setattr(model, "choose_device", lambda name: requested.append(name) or torch.device("cpu"))
    Recognizer(checkpoint)
    assert requested == ["auto"]


def test_hotwords_that_are_one_text_are_refused(checkpoint):
    with pytest.raises(ValueError, match=r"`hotwords` must be a list of phrases.*\['天气'\]"):
        Recognizer(checkpoint, SearchConfig("modified_beam_search"), hotwords="天气")


@pytest.mark.parametrize("batch_seconds", [0.0, float("inf"), float("nan")])
def test_batches_must_have_a_length(recognizer, batch_seconds):
    with pytest.raises(ValueError, match="`batch_seconds` must be above 0 s and finite, but is"):
        recognizer.transcribe([_noise(0.1)], batch_seconds=batch_seconds)


def test_threads_get_what_one_gets(recognizer):
    waves = [_noise(seconds) for seconds in (1.0, 0.3, 2.2, 0.7)]
    alone = [recognizer.transcribe([wave])[0] for wave in waves]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda wave: recognizer.transcribe([wave])[0], waves)) == alone


@pytest.mark.parametrize("samples", [0, 1, 80, 320, 900])
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


def _speech_and_silence():
    """A minute: bursts of noise of 0.5 to 6 s, with silences between."""
    rng = np.random.default_rng(5)
    parts = [np.zeros(8000, np.float32)]
    while sum(map(len, parts)) < 60 * 16000:
        parts += [_noise(round(rng.uniform(0.5, 6.0), 2)), np.zeros(round(16000 * rng.uniform(0.2, 2.0)), np.float32)]
    return np.concatenate(parts)


def test_short_sound_is_one_segment(recognizer):
    (found,) = recognizer.transcribe([_noise(2.0)])
    (segment,) = found.segments
    assert (segment.start, segment.end) == (0.0, 2.0) == (0.0, found.duration)
    assert segment.text == found.text and segment.tokens == found.tokens and segment.times == found.times


def test_segments_of_a_long_sound_are_what_each_alone_gives(long_recognizer):
    wave = _speech_and_silence()
    (found,) = long_recognizer.transcribe([wave])
    assert len(found.segments) > 10 and found.duration == round(len(wave) / 16000, 3)
    for segment in found.segments:
        first, last = (round(16000 * seconds) for seconds in (segment.start, segment.end))
        (alone,) = long_recognizer.transcribe([wave[first:last]])
        assert alone.text == segment.text
        assert segment.times == pytest.approx([segment.start + time for time in alone.times], abs=2e-3)
        np.testing.assert_allclose(segment.log_probs, alone.log_probs, rtol=1e-4)
    assert found.text == "".join(segment.text for segment in found.segments) != ""
    assert list(found.times) == sorted(found.times) and len(found.times) == len(found.tokens) == len(found.log_probs)


def test_file_wave_and_stream_give_the_same(long_recognizer, tmp_path):
    wave = _speech_and_silence()
    soundfile.write(tmp_path / "long.wav", wave, 16000, subtype="FLOAT")
    (found,) = long_recognizer.transcribe([wave])
    assert long_recognizer.transcribe([tmp_path / "long.wav"]) == [found]
    assert tuple(long_recognizer.stream_transcribe(tmp_path / "long.wav")) == found.segments


def test_stream_begins_before_the_sound_is_read_to_its_end(long_recognizer, tmp_path):
    """A sample that is no number, at the end: it is met after the first segments have been given."""
    wave = _speech_and_silence()
    wave[-1] = np.nan
    soundfile.write(tmp_path / "long.wav", wave, 16000, subtype="FLOAT")
    segments = long_recognizer.stream_transcribe(tmp_path / "long.wav", batch_seconds=5.0)
    assert next(segments).tokens
    with pytest.raises(AudioError, match="long.wav: holds samples that are not numbers, the first after 6"):
        list(segments)


@pytest.mark.sweep
@pytest.mark.parametrize("batch_seconds", [7.0, *(pytest.param(s, marks=pytest.mark.sweep) for s in (1.0, 1000.0))])
def test_pool_of_several_sounds_keeps_their_order(long_recognizer, tmp_path, batch_seconds):
    long, absent = _speech_and_silence(), tmp_path / "no.wav"
    sounds = [_noise(1.0), long, absent, np.zeros(0, np.float32), _noise(0.3), long[:200000]]
    done: list[float] = []
    found = list(long_recognizer.transcribe_each(sounds, batch_seconds=batch_seconds, progress=done.append))
    assert isinstance(found.pop(2), AudioError)
    alone = [long_recognizer.transcribe([sound])[0] for sound in sounds if sound is not absent]
    assert [t.text for t in found] == [t.text for t in alone]
    assert [[s.start for s in t.segments] for t in found] == [[s.start for s in t.segments] for t in alone]
    assert done == sorted(done) and done[-1] == pytest.approx(sum(t.duration for t in alone))


def test_transcript_comes_before_the_next_sounds_are_asked_for(long_recognizer):
    asked = []

    def sounds():
        for i in range(20):
            asked.append(i)
            yield _noise(2.0)

    next(long_recognizer.transcribe_each(sounds(), batch_seconds=4.0))
    assert len(asked) <= 3


def _counted(sounds, requested):
    for sound in sounds:
        requested.append(sound)
        yield sound


def test_results_before_any_speech_come_at_once(recognizer, tmp_path):
    absent, silent = tmp_path / "no.wav", np.zeros(1600, np.float32)
    for sound in (absent, silent):
        requested = []
        results = recognizer.transcribe_each(_counted([sound] * 5000, requested))
        assert isinstance(next(results), AudioError if sound is absent else Transcript)
        assert len(requested) == 1


def test_sounds_without_speech_do_not_wait_for_a_full_batch(recognizer, tmp_path):
    requested = []
    sounds = [_noise(0.5), *[np.zeros(1600, np.float32), tmp_path / "no.wav"] * 2500]
    results = recognizer.transcribe_each(_counted(sounds, requested))
    assert next(results).text and len(requested) < 100
    assert len(list(results)) == 5000


def test_a_transcript_comes_before_the_batches_behind_it(recognizer, monkeypatch):
    """The pool holds several batches; the longest sound is first, and in the first of them."""
    searched, search = [], recognizer.pipeline._search
    monkeypatch.setattr(recognizer.pipeline, "_search", lambda pieces: searched.extend(pieces) or search(pieces))
    results = recognizer.transcribe_each([_noise(3.0), _noise(0.5), _noise(0.2)], batch_seconds=3.5)
    assert next(results).text and len(searched) == 1
    assert len(list(results)) == 2


def test_truncated_file_is_transcribed_and_remarked(long_recognizer, tmp_path, caplog):
    soundfile.write(tmp_path / "whole.mp3", _noise(8.0), 16000)
    content = (tmp_path / "whole.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) // 2])
    (found,) = long_recognizer.transcribe([tmp_path / "cut.mp3"])
    assert 3 < found.duration < 5 and found.text
    assert found.warnings == tuple(record.getMessage() for record in caplog.records) != ()
    assert "cut.mp3: truncated: its header says 8.00 s, but it breaks off after " in found.warnings[0]


def test_silence_is_no_text_and_remarked(long_recognizer, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(10 * 16000), 16000)
    (found,) = long_recognizer.transcribe([tmp_path / "silence.wav"])
    assert (found.text, found.segments, found.duration) == ("", (), 10.0)
    assert "silence.wav: silent" in found.warnings[0]


def test_offset_of_a_microphone_changes_nothing(recognizer):
    """Direct current: the front end takes it from each frame."""
    (plain,), (shifted,) = (
        recognizer.transcribe([_noise(2.0) + offset]) for offset in (np.float32(0), np.float32(0.2))
    )
    assert plain.text == shifted.text != ""


def test_channel_and_stretch_of_a_file(recognizer, tmp_path):
    wave = _noise(3.0)
    soundfile.write(tmp_path / "two.wav", np.stack([np.zeros(len(wave)), wave], axis=1), 16000, subtype="FLOAT")
    (wanted,) = recognizer.transcribe([wave[8000:24000]])
    assert recognizer.transcribe([Stretch(tmp_path / "two.wav", 0.5, 1.0)], channel=1) == [wanted]
    with pytest.raises(AudioError, match="two.wav: has channels 0 to 1, but channel 2 is wanted"):
        recognizer.transcribe([tmp_path / "two.wav"], channel=2)
    # Python would count these from the end
    with pytest.raises(AudioError, match="channel -1 is wanted"):
        recognizer.transcribe([tmp_path / "two.wav"], channel=-1)
    for part, message in (
        ({"start_s": -1}, "`start_s` must be at least 0 s and finite, but is -1"),
        ({"start_s": np.inf}, "`start_s` .* but is inf"),
        ({"duration_s": -0.1}, "`duration_s` must be above 0 s, but is -0.1"),
        ({"duration_s": np.nan}, "`duration_s` .* but is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            Stretch(tmp_path / "two.wav", **part)
    with pytest.raises(ValueError, match="`sample_rate` .* but is 0"):
        recognizer.transcribe([wave], sample_rate=0)


def test_bfloat16_is_near_float32(checkpoint):
    wave = _noise(3.0)
    (exact,) = Recognizer(checkpoint).transcribe([wave])
    (near,) = Recognizer(checkpoint, precision="bf16").transcribe([wave])
    assert near.text and near.log_probs != exact.log_probs
    # bfloat16 keeps 8 bits
    assert np.mean(near.log_probs) == pytest.approx(np.mean(exact.log_probs), rel=2**-6)


def test_absent_device_is_named():
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="`device` must be auto, cpu, cuda or cuda:N, but is 'gpu'"):
        choose_device("gpu")
    with pytest.raises(ValueError, match=r"`device` cuda:99: torch sees \d+ GPUs"):
        choose_device("cuda:99")
    with pytest.raises(ValueError, match="`device` meta: torch cannot compute there"):
        choose_device("meta")


def test_waves_are_warned_of_as_files_are(recognizer):
    wave = _noise(1.0)
    silent, clipped, plain = recognizer.transcribe([np.zeros(16000), np.sign(wave), wave])
    assert silent.warnings == ("wave: silent: its loudest sample is 0 of full scale.",)
    assert clipped.warnings == ("wave: clipped: 100.0 % of its samples are at full scale.",)
    assert plain.warnings == ()
    with pytest.raises(AudioError, match=r"wave: holds samples of 1e\+04 times full scale; divide them"):
        recognizer.transcribe([10000 * np.ones(100)])
    with pytest.raises(AudioError, match=r"wave: holds samples that are not numbers, the first after 0\.01 s"):
        recognizer.transcribe([np.where(np.arange(1000) < 160, 0, np.nan)])


def test_a_model_that_gives_no_numbers_has_no_text_and_no_confidence(checkpoint, caplog):
    checkpoint.weights["joiner.output_linear.bias"][:] = torch.nan
    recognizer = Recognizer(checkpoint)
    (found,) = recognizer.transcribe([np.random.default_rng(0).standard_normal(16000).astype(np.float32)])
    assert found.text == "" and found.segments[0].confidence is None
    assert "output is not finite" in caplog.text
