"""A model that others published says here what it says in sherpa-onnx.

Such a folder is too large for this repository: name one by ``STREAMING_MODEL=folder``, with sound in its test_wavs/.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import kaldialign
import numpy as np
import pytest

from stateless_transducer.audio import read_audio
from stateless_transducer.decoding.stream_search import FLUSH_S
from stateless_transducer.recognition.streaming import StreamingRecognizer

FOLDER = Path(os.environ.get("STREAMING_MODEL", ""))
pytestmark = pytest.mark.skipif(
    "STREAMING_MODEL" not in os.environ, reason="needs a published model: STREAMING_MODEL=folder"
)


@pytest.fixture(scope="module")
def recognizer():
    return StreamingRecognizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def other():
    sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="the other client: pip install sherpa-onnx")
    return sherpa_onnx.OnlineRecognizer.from_transducer(
        **{role: str(min(FOLDER.glob(f"{role}*.onnx"))) for role in ("encoder", "decoder", "joiner")},
        tokens=str(FOLDER / "tokens.txt"),
        num_threads=1,
        enable_endpoint_detection=True,
        temperature_scale=1.0,
    )


def _sounds():
    """The wavs, alone and in a row with pauses; noise, silence, and next to nothing."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(16000 * 5).astype(np.float32)
    waves = [read_audio(path, 16000) for path in sorted((FOLDER / "test_wavs").glob("*.wav"))]
    pauses = [np.zeros(round(16000 * seconds), np.float32) for seconds in (0.4, 1.3, 2.6, 5.5, 0, 3.0, 0.9)]
    row = [part for pair in zip(waves, pauses, strict=False) for part in pair]
    rows = {"row": np.concatenate(row), "backwards": np.concatenate(row[::-1])} if row else {}
    quiet = {"noise": 0.1 * noise, "hiss": 1e-3 * noise, "silence": 0 * noise}
    short = {f"{count} samples": 0.1 * noise[:count] for count in (1, 80, 279, 280, 1600, 7319, 7320, 7480)}
    return {**{f"wav {i}": wave for i, wave in enumerate(waves)}, **rows, **quiet, **short}


def _recognize(recognizer, samples, piece=1600):
    """Segments of a sound that is fed piece by piece."""
    stream, segments = recognizer.create_stream(), []

    def decode():
        while recognizer.advance([stream]):
            if stream.is_endpoint:
                segments.append(stream.result)
                stream.reset()

    for start in range(0, len(samples), piece):
        stream.accept(samples[start : start + piece], 16000)
        decode()
    stream.finish()
    decode()
    return [*segments, stream.result]


def _recognize_there(other, samples, num_samples):
    """Segments of sherpa-onnx, whose caller has to append the silence: until there are ``num_samples``."""
    stream, segments = other.create_stream(), []
    stream.accept_waveform(16000, np.concatenate([samples, np.zeros(num_samples - len(samples), np.float32)]))
    while other.is_ready(stream):
        other.decode_stream(stream)
        if other.is_endpoint(stream):
            segments.append(other.get_result_all(stream))
            other.reset(stream)
    return [*segments, other.get_result_all(stream)]


def test_sherpa_onnx_says_the_same(recognizer, other):
    model, num_tokens, num_segments = recognizer._model, 0, 0
    for name, samples in _sounds().items():
        found = _recognize(recognizer, samples)
        seconds = len(samples) / 16000
        last_chunk = (-(-round((seconds + FLUSH_S) * 100) // model.chunk_shift) - 1) * model.chunk_shift
        # it waits for a frame more than it uses
        wanted = _recognize_there(other, samples, 160 * (last_chunk + model.chunk_frames) + 280)
        assert len(found) == len(wanted), name
        for own, its in zip(found, wanted, strict=True):
            assert [token.replace("\u2581", " ") for token in own.tokens] == its.tokens, name
            assert own.start == pytest.approx(min(its.start_time, seconds), abs=1e-3), name
            times = [min(its.start_time + time, seconds) for time in its.timestamps]
            assert own.times == pytest.approx(times, abs=0.081), name
            assert own.log_probs == pytest.approx(its.ys_probs, abs=1e-4), name
            num_tokens, num_segments = num_tokens + len(own.tokens), num_segments + 1
    assert num_tokens > 50 and num_segments > len(_sounds())


def test_recorded_reference_is_met(recognizer):
    """reference.json: {"results": {wav: {"greedy_search": {"tokens": [...], "timestamps": [...]}}}}.

    Products of int8 differ in rounding between CPUs, and so may a few tokens, and times by two frames.
    """
    if not (FOLDER / "reference.json").exists():
        pytest.skip(f"{FOLDER} holds no reference.json")
    results = json.loads((FOLDER / "reference.json").read_text(encoding="utf-8"))["results"]
    names = [name for name in results if (FOLDER / "test_wavs" / name).exists()]
    num_edits, num_tokens, num_equal = 0, 0, 0
    for name in names:
        stream = recognizer.create_stream()
        samples = read_audio(FOLDER / "test_wavs" / name, 16000)
        stream.accept(samples, 16000)
        stream.finish()
        while recognizer.advance([stream]):
            pass
        wanted, tokens = results[name]["greedy_search"], [t.replace("\u2581", " ") for t in stream.result.tokens]
        num_edits += kaldialign.edit_distance(wanted["tokens"], tokens)["total"]
        num_tokens += len(wanted["tokens"])
        if tokens == wanted["tokens"]:
            num_equal += 1
            times = [min(time, len(samples) / 16000) for time in wanted["timestamps"]]
            assert stream.result.times == pytest.approx(times, abs=0.081), name
    assert num_edits <= 0.05 * num_tokens and num_equal >= len(names) / 3 > 0


def test_pieces_and_company_change_nothing(recognizer):
    sounds = list(_sounds().values())
    alone = [_recognize(recognizer, samples) for samples in sounds]
    for samples, wanted in zip(sounds[:3], alone, strict=False):
        for piece in (112, len(samples)):
            assert _recognize(recognizer, samples, piece) == wanted
    streams, found = [recognizer.create_stream() for _ in sounds], [[] for _ in sounds]
    for stream, samples in zip(streams, sounds, strict=True):
        stream.accept(samples, 16000)
        stream.finish()
    while recognizer.advance(streams):
        for stream, segments in zip(streams, found, strict=True):
            if stream.is_endpoint:
                segments.append(stream.result)
                stream.reset()
    assert [[*segments, stream.result] for stream, segments in zip(streams, found, strict=True)] == alone
