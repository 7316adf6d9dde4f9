"""An encoder that the package does not know: two linear layers on pairs of frames, from training to transcripts.

It stands for the next encoder: what it needs beside its own file is an entry in each of two tables.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import soundfile
import torch
from small_corpus import write_small_corpus
from torch import nn

from stateless_transducer import Recognizer
from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.model import config as model_config
from stateless_transducer.model import transducer
from stateless_transducer.model.config import EncoderConfig
from stateless_transducer.model.encoder import Encoder
from stateless_transducer.ops.subsampling import Subsampling


@dataclass(frozen=True)
class ToyConfig(EncoderConfig):
    """Sizes of the toy."""

    kind: ClassVar[str] = "toy"

    toy_width: int = 12
    """Width between the two layers."""

    @property
    def subsampling(self):
        return Subsampling(factor=2, min_frames=2)

    @property
    def summary(self):
        return f"toy of width {self.toy_width}"


class Toy(Encoder):
    def __init__(self, config, feature_dim, output_dim):
        super().__init__()
        self.subsampling, self.output_dim, self.width = config.subsampling, output_dim, config.toy_width
        self.first = nn.Linear(2 * feature_dim, config.toy_width)
        self.second = nn.Sequential(nn.Dropout(config.dropout), nn.ReLU(), nn.Linear(config.toy_width, output_dim))

    @property
    def stages(self):
        return [self.first, self.second]

    def forward(self, features, feature_lens):
        # pairs of frames side by side; the last frame of an odd number is cut off
        pairs = torch.cat([features[:, 0:-1:2], features[:, 1::2]], dim=2)
        return self.second(self.first(pairs)), self.subsampling.lens(feature_lens)


@pytest.fixture(scope="module")
def toy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model_config.ENCODER_CONFIGS, "toy", ToyConfig)
        patch.setitem(transducer.ENCODER_BUILDERS, ToyConfig, Toy)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    flags = write_small_corpus(tmp_path_factory.mktemp("corpus"))
    of_conformers = {"--num-layers", "--attention-dim", "--num-heads", "--feedforward-dim"}
    of_conformers |= {"--conv-kernel", "--subsampling-channels"}
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [word for flag, value in pairs if flag not in of_conformers for word in (flag, value)]


@pytest.fixture(scope="module")
def exp(toy, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    flags = ["--encoder", "toy", "--toy-width", "8", "--max-duration", "12", "--ctc-loss-scale", "0.5"]
    assert main(["train", *corpus, *flags, "--exp-dir", str(folder), "--num-epochs", "2"]) == 0
    return folder


def test_subsampling_of_the_toy_counts_pairs():
    lens = ToyConfig().subsampling.lens(torch.tensor([0, 1, 2, 3, 4, 5]))
    assert lens.tolist() == [0, 0, 1, 1, 2, 2]


def test_toy_is_trained_and_named_in_its_checkpoint(exp):
    checkpoint = load_checkpoint(exp / "epoch-1.pt")
    assert checkpoint.model_config.encoder == ToyConfig(toy_width=8)
    assert checkpoint.model_config.sizes()["encoder"] == "toy"
    rows = [json.loads(line) for line in (exp / "log" / "metrics.jsonl").read_text().splitlines()]
    first, last = (row["valid_loss"] for row in rows if "valid_loss" in row)
    assert last < first
    # the CTC loss, for its one epoch
    assert [math.isfinite(row["ctc_loss"]) for row in rows if "ctc_loss" in row] == [True] * 3


def test_stages_of_the_toy_are_frozen(exp, corpus, tmp_path, capsys):
    flags = ["--encoder", "toy", "--toy-width", "8", "--max-duration", "12", "--num-epochs", "1"]
    flags = ["train", *corpus, *flags, "--init-from", str(exp / "epoch-1.pt"), "--exp-dir", str(tmp_path)]
    assert main([*flags, "--freeze-layers", "2"]) == 1
    assert "--freeze-layers` 2 is more than the 1 layer " in capsys.readouterr().err
    assert main([*flags, "--freeze-layers", "1", "--layer-lr-decay", "0.5"]) == 0
    before, after = (load_checkpoint(path).weights for path in (exp / "epoch-1.pt", tmp_path / "epoch-0.pt"))
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"decoder", "joiner"}


def test_toy_is_decoded_exported_and_transcribed(exp, corpus, tmp_path, capsys):
    manifest_dir = corpus[corpus.index("--manifest-dir") + 1]
    decode = ["decode", "--exp-dir", str(exp), "--manifest-dir", manifest_dir, "--test-sets", "dev"]
    assert main(decode) == 0
    assert main(["average", "--exp-dir", str(exp), "--output", str(tmp_path / "model.pt")]) == 0
    released = str(tmp_path / "model.safetensors")
    assert main(["export", "torch", "--checkpoint", str(tmp_path / "model.pt"), "--output", released]) == 0
    graphs = str(tmp_path / "onnx")
    assert main(["export", "onnx", "--checkpoint", str(tmp_path / "model.pt"), "--output", graphs]) == 0
    sound = tmp_path / "a.wav"
    soundfile.write(sound, 0.1 * np.random.default_rng(0).standard_normal(24000), 16000)
    texts = []
    for model in (str(tmp_path / "model.pt"), released, graphs):
        capsys.readouterr()
        assert main(["transcribe", model, str(sound)]) == 0
        texts.append(capsys.readouterr().out)
        assert main(["info", model]) == 0
        assert "toy" in capsys.readouterr().out
    assert len(set(texts)) == 1
    (transcript,) = Recognizer.from_pretrained(released).transcribe([sound])
    # encoder frames of 20 ms
    assert all(math.isclose(time / 0.02, round(time / 0.02), abs_tol=1e-6) for time in transcript.times)
    # a factor of four would put the last tokens beyond the end
    assert 0.75 < max(transcript.times) <= 1.5


def test_option_of_another_encoder_is_named(toy, corpus, tmp_path, capsys):
    assert main(["train", *corpus, "--encoder", "toy", "--num-layers", "2", "--exp-dir", str(tmp_path)]) == 1
    assert "`--num-layers` is an option of `--encoder conformer`, not of `--encoder toy`" in capsys.readouterr().err
    assert main(["train", *corpus, "--toy-width", "2", "--exp-dir", str(tmp_path)]) == 1
    assert "`--toy-width` is an option of `--encoder toy`, not of `--encoder conformer`" in capsys.readouterr().err


def test_unknown_encoder_is_named(corpus, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", *corpus, "--encoder", "zipper", "--exp-dir", str(tmp_path)])
    assert "zipper" in capsys.readouterr().err


def test_model_of_an_unknown_encoder_is_refused(exp, monkeypatch):
    monkeypatch.delitem(model_config.ENCODER_CONFIGS, "toy")
    with pytest.raises(ValueError, match="`encoder` must be one of conformer, zipformer, but is 'toy'"):
        load_checkpoint(exp / "epoch-1.pt")
