from __future__ import annotations

import json
import warnings

import pytest
import torch
from model_sizes import SMALL_ZIPFORMER, resized, zipformer_model
from tiny_talker import SIZES, TOKENS

from stateless_transducer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.transducer import build_model

# traced with 2 and 40
SHAPES = [(1, 0), (2, 5), (1, 7), (3, 11), (2, 40), (5, 41), (1, 700)]


@pytest.fixture(scope="module")
def model(talker):
    return load_checkpoint(talker / "model.pt").model()


def _export(talker, path):
    assert main(["export", "torch", "--checkpoint", str(talker / "model.pt"), "--output", str(path)]) == 0
    return str(path)


def _check(encode, model, N, T):
    x, x_lens = torch.randn(N, T, 80), torch.linspace(T, T // 2, N).long()
    found, lens = encode(x, x_lens)
    assert lens.tolist() == model.subsampling.lens(x_lens).tolist()
    if lens.max():
        wanted, _ = model.encode(x, x_lens)
        for i, count in enumerate(lens.tolist()):
            torch.testing.assert_close(found[i, :count], wanted[i, :count], rtol=0, atol=1e-5)


@pytest.mark.sweep
@torch.inference_mode()
def test_program_is_right_for_other_shapes_than_the_traced_one(talker, model, tmp_path):
    program = torch.export.load(_export(talker, tmp_path / "encoder.pt2")).module()
    for shape in SHAPES:
        _check(program, model, *shape)


def test_script_is_written_without_a_word_about_its_age(talker, tmp_path, monkeypatch):
    save = torch.jit.save

    def warn_and_save(*args, **options):
        warnings.warn("`torch.jit.save` is deprecated. Please switch to `torch.export`.", FutureWarning, stacklevel=2)
        save(*args, **options)

    monkeypatch.setattr(torch.jit, "save", warn_and_save)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        _export(talker, tmp_path / "model.jit.pt")
    assert not [str(each.message) for each in heard if "torch.jit" in str(each.message)]


@pytest.mark.filterwarnings("ignore:.*TorchScript.*")
@torch.inference_mode()
def test_script_is_right_for_other_shapes_than_the_traced_one(talker, model, tmp_path):
    script = torch.jit.load(_export(talker, tmp_path / "model.jit.pt"))
    for shape in SHAPES:
        _check(script.encode, model, *shape)
    contexts, pair = torch.randint(0, len(TOKENS), (5, 2)), torch.randn(2, 5, SIZES.joiner.joiner_dim)
    torch.testing.assert_close(script.predict(contexts), model.predict(contexts))
    torch.testing.assert_close(script.join(*pair), model.join(*pair))


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore:.*TorchScript.*")
@pytest.mark.parametrize("norm", ["mean", "level"])
@torch.inference_mode()
def test_mean_or_level_of_the_utterance_is_taken_in_program_and_script(tmp_path, norm):
    sizes = resized(SIZES, num_layers=1, feature_norm=norm)
    network = build_model(sizes).eval()
    save_checkpoint(tmp_path / "model.pt", Checkpoint(network.state_dict(), sizes, FbankConfig(), TOKENS))
    files = {"tokens.txt": "", "config.json": ""}
    program = torch.export.load(_export(tmp_path, tmp_path / "encoder.pt2"), extra_files=files).module()
    assert files["tokens.txt"].splitlines()[3] == f"{TOKENS.symbols[3]} 3"
    assert json.loads(files["config.json"])["sizes"]["num_layers"] == 1
    script = torch.jit.load(_export(tmp_path, tmp_path / "model.jit.pt"))
    for shape in SHAPES:
        _check(program, network, *shape)
        _check(script.encode, network, *shape)


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore:.*TorchScript.*")
@torch.inference_mode()
def test_zipformer_is_written_as_script_alone(tmp_path, capsys):
    sizes = zipformer_model(len(TOKENS), SMALL_ZIPFORMER, decoder_dim=12, joiner_dim=20)
    network = build_model(sizes).eval()
    save_checkpoint(tmp_path / "model.pt", Checkpoint(network.state_dict(), sizes, FbankConfig(), TOKENS))
    script = torch.jit.load(_export(tmp_path, tmp_path / "model.jit.pt"))
    for shape in SHAPES:
        _check(script.encode, network, *shape)
    flags = ["--checkpoint", str(tmp_path / "model.pt"), "--output", str(tmp_path / "encoder.pt2")]
    assert main(["export", "torch", *flags]) == 1
    assert "torch.export cannot write a zipformer" in capsys.readouterr().err


def test_safetensors_are_read_as_any_checkpoint(talker, tmp_path):
    given, found = load_checkpoint(talker / "model.pt"), load_checkpoint(_as_path(talker, tmp_path))
    assert (found.model_config, found.fbank_config, found.token_table) == (
        given.model_config,
        given.fbank_config,
        given.token_table,
    )
    assert found.provenance == given.provenance and found.training_state is None
    assert found.weights.keys() == given.weights.keys()
    assert all(torch.equal(found.weights[name], value) for name, value in given.weights.items())
    assert not found.model().training


def _as_path(talker, folder):
    _export(talker, folder / "model.safetensors")
    return folder / "model.safetensors"


def test_ending_that_says_nothing_is_refused(talker, tmp_path, capsys):
    with pytest.raises(SystemExit):
        _export(talker, tmp_path / "model.bin")
    assert "`--output` must end in .safetensors (" in capsys.readouterr().err
