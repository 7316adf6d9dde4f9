from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from tiny_streaming import CHUNK_LEN, KINDS, LOOK_AHEAD, SYMBOLS

from stateless_transducer.audio import AudioError
from stateless_transducer.decoding.stream_search import FLUSH_S
from stateless_transducer.features import FbankConfig, fbank
from stateless_transducer.recognition.endpoint import EndpointRules
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.recognition.streaming import StreamingRecognizer

# the tiny models talk fast
RULES = EndpointRules(rule1_min_trailing_silence=0.5, rule2_min_trailing_silence=0.1, rule3_min_utterance_length=1.0)
NO_RULES = EndpointRules(rule1_min_trailing_silence=1e3, rule2_min_trailing_silence=1e3, rule3_min_utterance_length=1e3)


@pytest.fixture
def recognizer(tiny_model):
    return StreamingRecognizer.from_pretrained(tiny_model().folder)


def _sound(seconds, seed=0, rate=16000):
    """Noise that swells and fades."""
    samples = np.random.default_rng(seed).standard_normal(round(seconds * rate)).astype(np.float32)
    return 0.2 * samples * np.abs(np.sin(np.arange(len(samples), dtype=np.float32) * 5 / rate))


def _recognize(recognizer, samples, piece=None, rate=16000):
    """Segments of a sound that is fed piece by piece; without a piece, all at once."""
    stream, segments = recognizer.create_stream(), []

    def decode():
        while recognizer.advance([stream]):
            if stream.is_endpoint:
                segments.append(stream.result)
                stream.reset()

    for start in range(0, len(samples), piece or len(samples)):
        stream.accept(samples[start : start + (piece or len(samples))], rate)
        decode()
    stream.finish()
    decode()
    return [*segments, stream.result]


def _flushed(samples):
    """The sound with the silence that `Stream.finish` has to append."""
    num_chunks = -(-round((len(samples) / 16000 + FLUSH_S) * 100) // CHUNK_LEN)
    num_frames = (num_chunks - 1) * CHUNK_LEN + CHUNK_LEN + LOOK_AHEAD
    return np.concatenate([samples, np.zeros(160 * num_frames + 120 - len(samples), np.float32)]), num_frames


@pytest.mark.parametrize("kind", KINDS)
def test_stream_says_what_the_whole_says(tiny_model, kind):
    tiny, samples = tiny_model(kind), _sound(3.0)
    (found,) = _recognize(StreamingRecognizer.from_pretrained(tiny.folder, rules=NO_RULES), samples)
    padded, num_frames = _flushed(samples)
    wanted = tiny.greedy(torch.from_numpy(fbank(padded, FbankConfig())[:num_frames]))
    assert len(wanted) > 5
    assert list(found.tokens) == [SYMBOLS[token] for token, _, _ in wanted]
    # what comes out in the silence behind the sound was said at its end
    assert found.times == pytest.approx([min(frame * 0.04, 3.0) for _, frame, _ in wanted])
    assert found.log_probs == pytest.approx([log_prob for *_, log_prob in wanted], abs=1e-3)
    assert found.text == "".join(found.tokens).replace("\u2581", " ").strip()
    assert (found.start, found.end) == (0, 3.0)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_pieces_of_any_length_give_the_same(tiny_model, rate):
    recognizer = StreamingRecognizer.from_pretrained(tiny_model().folder, rules=RULES)
    samples = _sound(3.3, rate=rate)
    whole = _recognize(recognizer, samples, rate=rate)
    assert len(whole) > 3 and sum(len(segment.tokens) for segment in whole) > 5
    for milliseconds in (7, 100):
        assert _recognize(recognizer, samples, piece=round(rate * milliseconds / 1000), rate=rate) == whole


def test_streams_at_once_say_what_each_alone_says(tiny_model):
    recognizer = StreamingRecognizer.from_pretrained(tiny_model().folder, rules=RULES)
    sounds = [_sound(seconds, seed) for seed, seconds in enumerate((2.0, 0.3, 3.1, 1.7))]
    streams, found = [recognizer.create_stream() for _ in sounds], [[] for _ in sounds]
    # in pieces of other lengths, so that they are ready, not ready and finished at different times
    pieces = [iter(np.array_split(samples, 3 + 4 * i)) for i, samples in enumerate(sounds)]
    for _ in range(20):
        for stream, own in zip(streams, pieces, strict=True):
            piece = next(own, None)
            stream.finish() if piece is None else stream.accept(piece, 16000)
        while recognizer.advance(streams):
            for stream, segments in zip(streams, found, strict=True):
                if stream.is_endpoint:
                    segments.append(stream.result)
                    stream.reset()
    for samples, stream, segments in zip(sounds, streams, found, strict=True):
        wanted = _recognize(recognizer, samples)
        together = [*segments, stream.result]
        assert [(each.tokens, each.times, each.start, each.end) for each in together] == [
            (each.tokens, each.times, each.start, each.end) for each in wanted
        ]
        for a, b in zip(together, wanted, strict=True):
            assert a.log_probs == pytest.approx(b.log_probs, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_sherpa_onnx_says_the_same(tiny_model, kind):
    sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="the other client: pip install sherpa-onnx")
    folder, samples = tiny_model(kind).folder, _sound(4.0, seed=3)
    # behind an endpoint sherpa-onnx tells a conformer that nothing came before, which hides its left context
    rules = NO_RULES if kind == "conformer" else RULES
    other = sherpa_onnx.OnlineRecognizer.from_transducer(
        **{role: str(folder / f"{role}.onnx") for role in ("encoder", "decoder", "joiner")},
        tokens=str(folder / "tokens.txt"),
        num_threads=1,
        enable_endpoint_detection=True,
        temperature_scale=1.0,
        **asdict(rules),
    )
    stream, wanted = other.create_stream(), []
    # it waits for a frame more than it uses
    stream.accept_waveform(16000, np.concatenate([_flushed(samples)[0], np.zeros(160, np.float32)]))
    while other.is_ready(stream):
        other.decode_stream(stream)
        if other.is_endpoint(stream):
            wanted.append(other.get_result_all(stream))
            other.reset(stream)
    wanted.append(other.get_result_all(stream))
    found = _recognize(StreamingRecognizer.from_pretrained(folder, rules=rules), samples)
    assert len(found) == len(wanted) and sum(len(each.tokens) for each in found) > 10
    assert len(found) > 3 or kind == "conformer"
    for own, its in zip(found, wanted, strict=True):
        assert [token.replace("\u2581", " ") for token in own.tokens] == its.tokens
        assert own.text == its.text.strip()
        times = [min(its.start_time + time, 4.0) for time in its.timestamps]
        assert own.times == pytest.approx(times, abs=1e-4)
        assert own.log_probs == pytest.approx(its.ys_probs, abs=1e-4)


def test_integers_and_floats_are_the_same_sound(recognizer):
    integers = (_sound(1.5) * 32767).astype(np.int16)
    wanted = _recognize(recognizer, integers.astype(np.float32) / 32768)
    assert wanted[0].tokens and _recognize(recognizer, integers) == wanted
    assert _recognize(recognizer, integers.astype(np.float64) / 32768) == wanted


def test_sound_of_another_rate_is_resampled(recognizer):
    samples = _sound(2.0, rate=8000)
    resampled = soxr.resample(samples, 8000, 16000).astype(np.float32)
    assert _recognize(recognizer, samples, piece=333, rate=8000) == _recognize(recognizer, resampled)


def test_latency_is_when_the_first_chunk_is_ready(recognizer):
    needed = round(recognizer.latency_s * 16000)
    for missing in (1, 0):
        stream = recognizer.create_stream()
        stream.accept(_sound(2.0)[: needed - missing], 16000)
        assert recognizer.advance([stream]) == stream.is_ready + 1 - missing == 1 - missing


def test_finished_stream_is_decoded_beyond_its_end(recognizer):
    for num_samples in (1, 100, 500, 1600, 12345):
        stream = recognizer.create_stream()
        stream.accept(_sound(1.0)[:num_samples], 16000)
        stream.finish()
        stream.finish()
        while recognizer.advance([stream]):
            pass
        beyond_s = stream._num_processed / 100 - num_samples / 16000
        assert FLUSH_S <= beyond_s <= FLUSH_S + CHUNK_LEN / 100 + 0.005
        assert stream.result.end == round(num_samples / 16000, 3)


def test_stream_without_sound_says_nothing(recognizer):
    stream = recognizer.create_stream()
    stream.accept(np.zeros(0, np.float32), 44100)
    stream.finish()
    assert recognizer.advance([stream]) == recognizer.advance([]) == 0
    assert stream.result.text == "" and stream.result.tokens == () and stream.result.end == 0


def test_result_grows(recognizer):
    stream, lengths = recognizer.create_stream(), []
    stream.accept(_sound(2.0), 16000)
    while recognizer.advance([stream]):
        lengths.append(len(stream.result.tokens))
    assert lengths == sorted(lengths) and len(set(lengths)) > 3


def test_stream_named_twice_advances_once(recognizer):
    stream = recognizer.create_stream()
    stream.accept(_sound(1.0), 16000)
    assert recognizer.advance([stream, stream]) == 1 and stream.result.end == CHUNK_LEN / 100


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros((10, 2), np.float32), 16000, r"`samples` must be \(S,\), one channel, but are \(10, 2\)"),
        (np.zeros(10, np.int32), 16000, "`samples` must be floats in \\[-1, 1\\] or int16, but are int32"),
        (np.array([0.1, np.nan], np.float32), 16000, "`samples` must be floats in .* but reach nan"),
        (np.array([0.1, np.inf]), 16000, "`samples` must be floats in .* but reach inf"),
        (np.array([3000.0, -20.0]), 16000, "`samples` must be floats in .* but reach 3000"),
        (np.zeros(10, np.float32), 0, "`sample_rate` must be a whole number in 1000..1000000 Hz, but is 0"),
        (np.zeros(10, np.float32), np.nan, "`sample_rate` .* but is nan"),
        (np.zeros(10, np.float32), 8000, "`sample_rate` must stay 16000 Hz within a stream, but is 8000"),
    ],
    ids=["channels", "dtype", "nan", "inf", "scale", "no-rate", "nan-rate", "other-rate"],
)
def test_bad_samples_are_named_and_leave_the_stream_as_it_was(recognizer, samples, rate, message):
    stream = recognizer.create_stream()
    stream.accept(_sound(1.0), 16000)
    with pytest.raises(ValueError, match=message):
        stream.accept(samples, rate)
    stream.finish()
    while recognizer.advance([stream]):
        pass
    assert [stream.result] == _recognize(recognizer, _sound(1.0))


def test_finished_stream_takes_no_more(recognizer):
    stream = recognizer.create_stream()
    stream.finish()
    with pytest.raises(ValueError, match="The stream is finished; make a new one for more sound"):
        stream.accept(np.zeros(10, np.float32), 16000)


def test_stream_of_another_recognizer_is_refused(recognizer, tiny_model):
    stream = StreamingRecognizer.from_pretrained(tiny_model().folder).create_stream()
    stream.accept(_sound(1.0), 16000)
    with pytest.raises(ValueError, match="A stream belongs to another recognizer"):
        recognizer.advance([stream])


def test_tokens_that_the_table_lacks_are_named(tiny_model, tmp_path):
    for path in tiny_model().folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = (tmp_path / "tokens.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "tokens.txt").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokens.txt: lacks id 19, .* 0..19"):
        StreamingRecognizer.from_pretrained(tmp_path)
    (tmp_path / "tokens.txt").unlink()
    with pytest.raises(ValueError, match="tokens.txt"):
        StreamingRecognizer.from_pretrained(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of the process from /proc")
@pytest.mark.sweep
def test_memory_of_a_long_stream_does_not_grow(tiny_model):
    recognizer = StreamingRecognizer.from_pretrained(tiny_model().folder, rules=RULES)
    stream, minute, sizes = recognizer.create_stream(), _sound(30.0), []
    for _ in range(3):
        for start in range(0, len(minute), 8000):
            stream.accept(minute[start : start + 8000], 16000)
            while recognizer.advance([stream]):
                if stream.is_endpoint:
                    stream.reset()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
    assert stream.result.end == pytest.approx(90, abs=0.2)
    # kept frames would be 1.9 MB from the first to the last, some of it room that was there already
    assert sizes[-1] - sizes[0] < 1e6


def test_streaming_loads_no_torch(tiny_model):
    program = (
        "import sys; from stateless_transducer import StreamingRecognizer as R\n"
        f"r = R.from_pretrained({str(tiny_model().folder)!r}); r.advance([r.create_stream()])\n"
        "print('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == "False\n"


def test_example_of_the_documentation_runs(tiny_model, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text(encoding="utf-8")
    whole, example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    soundfile.write(tmp_path / "a.wav", _sound(3.0), 16000, subtype="FLOAT")
    (tmp_path / "model").symlink_to(tiny_model().folder)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    segments = _recognize(StreamingRecognizer.from_pretrained("model"), _sound(3.0))
    assert capsys.readouterr().out == "".join(f"{segment.text} {segment.times}\n" for segment in segments)
    exec(whole, {})
    assert capsys.readouterr().out == "".join(segment.text for segment in segments) + "\n"


def test_a_whole_sound_gives_what_its_stream_gives(tiny_model, tmp_path):
    recognizer = StreamingRecognizer.from_pretrained(
        str(tiny_model().folder), rules=RULES, precision="fp32", device="cpu"
    )
    wave = _sound(4.0)
    expected = [segment for segment in _recognize(recognizer, wave, piece=1600) if segment.tokens]
    assert len(expected) > 1
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    transcript = recognizer.transcribe(tmp_path / "a.wav")
    assert (list(transcript.segments), transcript.duration) == (expected, 4.0)
    assert transcript.text == recognizer.token_table.join(segment.text for segment in expected)
    assert recognizer.transcribe([str(tmp_path / "a.wav"), (wave, 16000)]) == [transcript, transcript]
    assert list(recognizer.stream_transcribe(wave)) == expected
    with pytest.raises(AudioError, match="no.wav: no such file"):
        recognizer.transcribe(tmp_path / "no.wav")


def test_both_recognizers_take_the_same_arguments():
    """Whoever changes the model changes the class name alone, as far as both can do the same."""
    for name in ("from_pretrained", "transcribe", "stream_transcribe"):
        whole, streaming = (
            list(inspect.signature(getattr(kind, name)).parameters) for kind in (Recognizer, StreamingRecognizer)
        )
        shared = [parameter for parameter in whole if parameter in streaming]
        assert shared == [parameter for parameter in streaming if parameter in whole]
        assert set(streaming) - set(whole) <= {"rules", "chunk_ms", "left_ms"}


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"precision": "bf16"}], ids=str)
def test_a_streaming_model_runs_on_the_cpu(tiny_model, options):
    with pytest.raises(ValueError, match="is a streaming model of ONNX graphs: it runs on the CPU, in fp32 or int8"):
        StreamingRecognizer.from_pretrained(tiny_model().folder, **options)
