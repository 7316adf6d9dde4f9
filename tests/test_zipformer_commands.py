"""A Zipformer through the commands: trained, resumed, decoded, exported, transcribed."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from small_corpus import write_small_corpus

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.commands import train
from stateless_transducer.model.config import ZIPFORMER_SIZES

SIZES = """--encoder zipformer --num-encoder-layers 1 --downsampling-factor 1,4,2 --encoder-dim 16,32,24
--encoder-unmasked-dim 12,20,16 --feedforward-dim 24 --num-heads 2 --query-head-dim 6 --value-head-dim 4
--pos-head-dim 2 --pos-dim 12 --cnn-module-kernel 7 --decoder-dim 12 --joiner-dim 20 --causal 1 --chunk-size 8,16,-1
--left-context-frames 16,-1""".split()
OF_CONFORMERS = {"--num-layers", "--attention-dim", "--num-heads", "--feedforward-dim", "--conv-kernel"}


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    words = write_small_corpus(tmp_path_factory.mktemp("corpus"), count=8)
    pairs = zip(words[::2], words[1::2], strict=True)
    others = OF_CONFORMERS | {"--subsampling-channels"}
    kept = [word for flag, value in pairs if flag not in others for word in (flag, value)]
    return [*kept, *SIZES, "--max-duration", "4", "--decay-epochs", "2"]


@pytest.fixture(scope="module")
def exp(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exp")
    assert main(["train", *flags, "--exp-dir", str(folder), "--num-epochs", "2"]) == 0
    return folder


@pytest.mark.sweep
def test_resumed_training_is_bit_equal(exp, flags, tmp_path):
    assert main(["train", *flags, "--exp-dir", str(tmp_path), "--num-epochs", "1"]) == 0
    assert main(["train", *flags, "--exp-dir", str(tmp_path), "--num-epochs", "2", "--start-epoch", "1"]) == 0
    whole, resumed = (load_checkpoint(folder / "epoch-1.pt").weights for folder in (exp, tmp_path))
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())


def test_model_is_decoded_exported_and_transcribed(exp, flags, tmp_path, capsys):
    manifest_dir = flags[flags.index("--manifest-dir") + 1]
    assert main(["decode", "--exp-dir", str(exp), "--manifest-dir", manifest_dir, "--test-sets", "dev"]) == 0
    model, graphs = str(tmp_path / "model.pt"), str(tmp_path / "onnx")
    assert main(["average", "--exp-dir", str(exp), "--output", model]) == 0
    assert main(["export", "onnx", "--checkpoint", model, "--output", graphs]) == 0
    released = str(tmp_path / "model.safetensors")
    assert main(["export", "torch", "--checkpoint", model, "--output", released]) == 0
    sound = tmp_path / "a.wav"
    soundfile.write(sound, 0.1 * np.random.default_rng(0).standard_normal(24000), 16000)
    texts = []
    for path in (model, released, graphs):
        capsys.readouterr()
        assert main(["transcribe", path, str(sound)]) == 0
        texts.append(capsys.readouterr().out)
        assert main(["info", path]) == 0
        assert "zipformer" in capsys.readouterr().out
    assert len(set(texts)) == 1


def test_published_size_is_chosen_by_name(flags, tmp_path, capsys):
    few = flags[: flags.index("--encoder")]
    words = ["--encoder", "zipformer", "--zipformer-size", "s"]
    options = train.parse_options(train.Options, "train", words, "", train.Options())
    assert "zipformer S, 12 layers" in options.model.encoder.summary
    assert ZIPFORMER_SIZES["s"].num_heads == (4, 4, 4, 8, 4, 4)
    assert main(["train", *flags, "--compile", "true", "--dry-run"]) == 1
    assert "`--compile` is true, but a zipformer cannot be compiled" in capsys.readouterr().err
    assert main(["train", *few, "--zipformer-size", "s", "--dry-run"]) == 1
    assert "`--zipformer-size` is an option of `--encoder zipformer`" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["train", *few, "--encoder", "zipformer", "--encoder-dim", "16,33", "--dry-run"])
    assert "encoder-dim` must have as many numbers as" in " ".join(capsys.readouterr().err.split())
