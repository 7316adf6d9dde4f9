"""An exported model says the same in torch, here without torch, in sherpa-onnx and in onnx-asr."""

from __future__ import annotations

import numpy as np
import onnx_asr
import pytest
import sherpa_onnx
from tiny_offline import write_offline
from tiny_talker import SIZES, say, some_text

from stateless_transducer.checkpoint import Checkpoint, load_checkpoint
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.export.onnx_writer import write_onnx
from stateless_transducer.features import FbankConfig
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.text.tokens import SPECIAL, TokenTable

METHODS = [pytest.param("greedy_search", marks=pytest.mark.sweep), "modified_beam_search"]


def _waves():
    """Eight of unlike length, with what was said."""
    rng = np.random.default_rng(11)
    texts = [some_text(rng) for _ in range(8)]
    return texts, [say(text, rng) for text in texts]


def _short_waves():
    rng = np.random.default_rng(12)
    tone = say("今", rng)[5000:]
    return [tone[:count] for count in (0, 1, 320, 800, 1100, 1200, 1600)]


def _ours(path, waves, method="greedy_search", precision="fp32", batch_seconds=100.0):
    recognizer = Recognizer.from_pretrained(path, SearchConfig(method), precision=precision, num_threads=1)
    found = recognizer.transcribe(waves, batch_seconds=batch_seconds)
    return [_said(each.tokens, each.times) for each in found]


def _sherpas(folder, waves, method="greedy_search", suffix="", batched=True):
    recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
        **{role: str(folder / f"{role}{suffix}.onnx") for role in ("encoder", "decoder", "joiner")},
        tokens=str(folder / "tokens.txt"),
        decoding_method=method,
    )
    streams = []
    for wave in waves:
        streams.append(recognizer.create_stream())
        streams[-1].accept_waveform(16000, wave)
    for batch in [streams] if batched else [[stream] for stream in streams]:
        recognizer.decode_streams(batch)
    assert all(stream.result.text.strip() == "".join(stream.result.tokens).strip() for stream in streams)
    return [_said(stream.result.tokens, stream.result.timestamps) for stream in streams]


def _said(tokens, times):
    """What is compared; a frame is 40 ms."""
    return "".join(tokens or ()), [round(time, 2) for time in times or ()]


@pytest.mark.parametrize("method", METHODS)
def test_all_say_the_same_alone_and_in_a_batch(talker, method):
    texts, waves = _waves()
    wanted = _ours(talker / "model.pt", waves, method)
    assert [text for text, _ in wanted] == texts
    assert _ours(talker / "onnx", waves, method) == wanted
    assert _ours(talker / "onnx", waves, method, batch_seconds=0.1) == wanted
    assert _sherpas(talker / "onnx", waves, method) == wanted
    assert _sherpas(talker / "onnx", waves, method, batched=False) == wanted


@pytest.mark.sweep
@pytest.mark.parametrize("method", METHODS)
def test_next_to_no_sound_is_no_error(talker, method):
    waves = _short_waves()
    wanted = _ours(talker / "model.pt", waves, method)
    assert wanted[0] == ("", [])
    for batch_seconds in (100.0, 0.001):
        assert _ours(talker / "onnx", waves, method, batch_seconds=batch_seconds) == wanted
        assert _sherpas(talker / "onnx", waves, method, batched=batch_seconds > 1) == wanted


@pytest.mark.sweep
def test_int8_says_the_same(talker):
    _, waves = _waves()
    wanted = _ours(talker / "onnx", waves, precision="int8")
    assert [text for text, _ in wanted] == [text for text, _ in _ours(talker / "model.pt", waves)]
    assert _sherpas(talker / "onnx", waves, suffix=".int8", batched=False) == wanted


@pytest.mark.parametrize("quantization", [None, pytest.param("int8", marks=pytest.mark.sweep)])
def test_onnx_asr_says_the_same(talker, quantization):
    # its own front end takes no fewer samples
    waves = [*_waves()[1], *(wave for wave in _short_waves() if len(wave) >= 320)]
    # it wants the files in a folder of the folder
    model = onnx_asr.load_model("kaldi-rnnt", talker, quantization=quantization).with_timestamps()
    wanted = _ours(talker / "onnx", waves, precision=quantization or "fp32")
    for wave, alone in zip(waves, wanted, strict=True):
        found = model.recognize(wave, sample_rate=16000)
        assert _said(found.tokens, found.timestamps) == alone
    if quantization is None:
        together = model.recognize(waves[:8], sample_rate=16000)
        assert [_said(found.tokens, found.timestamps) for found in together] == wanted[:8]


@pytest.mark.sweep
def test_words_are_apart(talker, tmp_path):
    table = TokenTable((*SPECIAL, "one", "two", "three", "four", "five", "six"), "word")
    write_onnx(tmp_path, Checkpoint(load_checkpoint(talker / "model.pt").weights, SIZES, FbankConfig(), table))
    wave = say("今天气", np.random.default_rng(0))
    (found,) = Recognizer.from_pretrained(tmp_path).transcribe([wave])
    assert (found.text, found.tokens) == ("one two three", ("one", "two", "three"))
    ((text, _),) = _sherpas(tmp_path, [wave])
    assert text.strip() == "one two three"


@pytest.mark.parametrize("method", METHODS)
def test_somebody_elses_model_says_here_what_it_says_there(tmp_path, method):
    folder = write_offline(tmp_path, name="")
    rng = np.random.default_rng(0)
    waves = [(0.1 * rng.standard_normal(count)).astype(np.float32) for count in (16000, 9000, 30000, 1500)]
    wanted = _sherpas(folder, waves, method)
    found = _ours(folder, waves, method)
    assert [(text.replace("\u2581", " "), times) for text, times in found] == wanted
    assert sum(len(times) for _, times in wanted) > 5
    # too short for that model, which is an error there
    assert _ours(folder, [waves[0][:1000]], method) == [("", [])]
