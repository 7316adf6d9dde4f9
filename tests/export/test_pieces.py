"""A model of pieces of words: exported, read back, and given hotwords here and in sherpa-onnx."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import sherpa_onnx
import torch

from stateless_transducer.checkpoint import load_checkpoint, save_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.text.tokens import SPECIAL, TokenTable

PIECES = ("▁ka", "to", "▁mi", "sun", "▁", "re")
"""What the talker's characters are called here; the n-th is a tone of 300 * 1.5^n Hz."""
TOKENS = TokenTable((*SPECIAL, *PIECES), "bpe", (0.0, 0.0, 0.0, -1.0, -2.0, -2.0, -2.5, -9.0, -3.0))
HOTWORD, SCORE = "kato", 3.0


@pytest.fixture(scope="module")
def folder(talker, tmp_path_factory):
    """With model.pt, model.safetensors and onnx/."""
    folder = tmp_path_factory.mktemp("pieces")
    checkpoint = replace(load_checkpoint(talker / "model.pt"), token_table=TOKENS)
    for name in ("model.pt", "model.safetensors"):
        save_checkpoint(folder / name, checkpoint)
    assert main(["export", "onnx", "--checkpoint", str(folder / "model.pt"), "--output", str(folder / "onnx")]) == 0
    return folder


def _wave(place: float) -> np.ndarray:
    """The tones of ▁ka, of what is at some place among the pieces' tones, and of sun."""
    rng, time = np.random.default_rng(3), np.arange(3200) / 16000
    tones = [0.3 * np.sin(2 * np.pi * 300 * 1.5**which * time) for which in (0, place, 3)]
    pause = np.zeros(1600)
    wave = np.concatenate([pause, *(part for tone in tones for part in (pause, tone)), pause])
    return (wave + 0.003 * rng.standard_normal(len(wave))).astype(np.float32)


@pytest.fixture(scope="module")
def wave(folder):
    """Its second tone is between "to" and "▁mi", and just heard as the latter."""
    recognizer = Recognizer.from_pretrained(folder / "model.pt", SearchConfig("modified_beam_search"))
    waves = [_wave(place) for place in np.linspace(1, 2, 51)]
    texts = [found.text for found in recognizer.transcribe(waves)]
    assert texts[0] == "katosun" and texts[-1] == "ka misun"
    return waves[texts.index("ka misun")]


def _sherpas(folder, wave, hotwords):
    with_hotwords = {}
    if hotwords:
        (folder / "hotwords.txt").write_text(f"{HOTWORD}\n", encoding="utf-8")
        with_hotwords = {"hotwords_file": str(folder / "hotwords.txt"), "hotwords_score": SCORE}
        with_hotwords |= {"modeling_unit": "bpe", "bpe_vocab": str(folder / "bpe.vocab")}
    recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
        **{role: str(folder / f"{role}.onnx") for role in ("encoder", "decoder", "joiner")},
        tokens=str(folder / "tokens.txt"),
        decoding_method="modified_beam_search",
        **with_hotwords,
    )
    stream = recognizer.create_stream()
    stream.accept_waveform(16000, wave)
    recognizer.decode_stream(stream)
    return stream.result.text.strip()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "onnx"])
def test_pieces_make_words_and_spell_hotwords(folder, wave, name):
    search = SearchConfig("modified_beam_search", hotwords_score=SCORE)
    for hotwords, text in (([], "ka misun"), ([HOTWORD], "katosun")):
        recognizer = Recognizer.from_pretrained(folder / name, search, hotwords=hotwords)
        assert recognizer.token_table == TOKENS
        assert [found.text for found in recognizer.transcribe([wave])] == [text]
    with pytest.raises(ValueError, match="cannot spell `kato x`: it lacks 'x'"):
        Recognizer.from_pretrained(folder / name, search, hotwords=["kato x"])


def test_sherpa_finds_the_same_with_the_scores_beside_the_model(folder, wave):
    assert _sherpas(folder / "onnx", wave, hotwords=False) == "ka misun"
    assert _sherpas(folder / "onnx", wave, hotwords=True) == "katosun"


def test_info_knows_the_scores(folder, capsys):
    scores = folder / "onnx" / "bpe.vocab"
    before = scores.read_text(encoding="utf-8")
    assert main(["info", str(folder / "onnx")]) == 0
    assert "bpe.vocab" in capsys.readouterr().out
    scores.write_text(before.replace("-9", "-8"), encoding="utf-8")
    assert main(["info", str(folder / "onnx"), "--output-format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed_since_export"] == ["bpe.vocab"]
    scores.write_text(before, encoding="utf-8")


@pytest.mark.sweep
def test_no_scores_stay_behind_from_another_model(folder, talker, tmp_path):
    for model in (folder / "model.pt", talker / "model.pt"):
        assert main(["export", "onnx", "--checkpoint", str(model), "--output", str(tmp_path / "onnx")]) == 0
    assert not (tmp_path / "onnx" / "bpe.vocab").exists()


@pytest.mark.sweep
def test_torch_export_has_the_scores_in_it(folder):
    path = folder / "model.jit.pt"
    assert main(["export", "torch", "--checkpoint", str(folder / "model.pt"), "--output", str(path)]) == 0
    extra = {"bpe.vocab": "", "tokens.txt": ""}
    torch.jit.load(path, _extra_files=extra)
    scores = extra["bpe.vocab"]
    assert (scores if isinstance(scores, str) else scores.decode()) == TOKENS.scores_text()
