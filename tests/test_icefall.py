"""icefall's checkpoints: every name, size and bit comes over and goes back; what does not fit is named."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path, PosixPath

import pytest
import torch
from model_sizes import SMALL_ZIPFORMER, conformer_model, resized, zipformer_model
from safetensors.torch import load_file

from stateless_transducer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from stateless_transducer.features import FbankConfig
from stateless_transducer.icefall import from_icefall, load_icefall, save_icefall, to_icefall
from stateless_transducer.icefall_layouts import conformer_name, icefall_conformer_name
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.tokens import SPECIAL, TokenTable

FULL = conformer_model(vocab_size=4336)
SMALL = conformer_model(vocab_size=6, num_layers=2, attention_dim=8, num_heads=2, feedforward_dim=12, joiner_dim=10)
MODELS = ("r", "b")  # context 2 and 1
RECIPE = "is not a checkpoint of icefall's transducer_stateless_modified"
RECIPES = f"{RECIPE} or zipformer"
LAYER = "encoder.encoder.layers.0."


def _tokens(size):
    return TokenTable((*SPECIAL, *(chr(0x4E00 + i) for i in range(size - len(SPECIAL)))))


def _weights(config=SMALL):
    """As icefall names them."""
    return OrderedDict(
        (icefall_conformer_name(name), value) for name, value in build_model(config).state_dict().items()
    )


def _shapes(weights):
    return {name: list(value.shape) for name, value in weights.items()}


def _pretrained(golden, name):
    return golden / name / "pretrained.pt", _tokens(_golden_sizes(golden, name)["vocab_size"])


def _golden_sizes(golden, name):
    return json.loads((golden / name / "config.json").read_text())["config"]


def _save_epoch(path, **changes):
    """What icefall's train.py writes after an epoch."""
    weights = _weights()
    adam = torch.optim.Adam([torch.zeros(2, requires_grad=True)])
    content = {
        "model": weights,
        "optimizer": {"_step": 3, "warmup": 20, "factor": 5.0, "_rate": 0.1, "optimizer": adam.state_dict()},
        "scheduler": None,
        "grad_scaler": None,
        "sampler": None,
        "best_train_loss": float("inf"),
        "best_valid_epoch": -1,
        "batch_idx_train": 16,
        "cur_epoch": 1,
        "feature_dim": 80,
        "encoder_out_dim": 10,
        "attention_dim": 8,
        "nhead": 2,
        "dim_feedforward": 12,
        "num_encoder_layers": 2,
        "vgg_frontend": False,
        "vocab_size": 6,
        "context_size": 2,
        # torch.__version__ is no plain string
        "env_info": {"k2-with-cuda": True, "torch-version": torch.__version__},
        "exp_dir": PosixPath("transducer_stateless_modified/exp"),
        "lang_dir": PosixPath("data/lang_char"),
        "manifest_dir": PosixPath("data/fbank"),
    }
    torch.save(content | changes, path)
    return weights


def test_names_lead_there_and_back(golden):
    names = json.loads((golden / "state_dict_keys_full.json").read_text())
    assert [icefall_conformer_name(conformer_name(name)) for name in names] == list(names)


def test_full_model_is_written_with_icefalls_names_and_shapes(golden):
    theirs = json.loads((golden / "state_dict_keys_full.json").read_text())
    with torch.device("meta"):
        ours = build_model(FULL).state_dict()
    written = to_icefall(Checkpoint(ours, FULL, FbankConfig(), _tokens(4336)))
    assert len(written) == 410 and _shapes(written) == theirs


@pytest.mark.parametrize(
    "config",
    [
        FULL,
        resized(SMALL, conv_kernel=3),
        resized(SMALL, subsampling_channels=5),
        resized(SMALL, context_size=1),
        resized(SMALL, context_size=4, num_heads=4, num_layers=11),
    ],
    ids=["full", "kernel", "channels", "context-1", "eleven-layers"],
)
@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "ddp"])
def test_sizes_follow_from_the_tensors(config, prefix):
    with torch.device("meta"):
        theirs = {prefix + name: value for name, value in _weights(config).items()}
    weights, found = from_icefall(theirs)
    assert found == config
    assert _shapes(weights) == {
        conformer_name(name.removeprefix(prefix)): shape for name, shape in _shapes(theirs).items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_sizes_of_golden_models_are_found(golden, name):
    found, sizes = load_icefall(*_pretrained(golden, name)).model_config.sizes(), _golden_sizes(golden, name)
    same = {
        "num_layers": "num_encoder_layers",
        "num_heads": "nhead",
        "attention_dim": "attention_dim",
        "feedforward_dim": "dim_feedforward",
        "vocab_size": "vocab_size",
        "joiner_dim": "encoder_out_dim",
        "context_size": "context_size",
        "feature_dim": "feature_dim",
    }
    assert {name: found[name] for name in same} == {name: sizes[key] for name, key in same.items()}
    assert (found["encoder"], found["conv_kernel"], found["subsampling_channels"]) == ("conformer", 31, None)


@pytest.mark.parametrize("name", MODELS)
def test_imported_model_computes_what_icefall_computed(golden, name, tmp_path, device):
    save_checkpoint(tmp_path / "m.pt", load_icefall(*_pretrained(golden, name)))
    model = load_checkpoint(tmp_path / "m.pt").model().to(device)
    inputs, wanted = (load_file(golden / name / f"{which}.safetensors") for which in ("inputs", "outputs"))
    features, lens = inputs["b0.x"].float()[None], inputs["b0.x_lens"].long()
    with torch.no_grad():
        found, _ = model.encode(features.to(device), lens.to(device))
        predicted = model.predict(wanted["dec.contexts"].long().to(device))
    # tolerances as in decoding/test_icefall_golden.py
    torch.testing.assert_close(found[0].cpu(), wanted["b0.encoder_out"], rtol=0, atol=5e-5)
    torch.testing.assert_close(predicted.cpu(), wanted["dec.out"][:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_bit_equal(golden, name, tmp_path):
    path, tokens = _pretrained(golden, name)
    save_checkpoint(tmp_path / "m.pt", load_icefall(path, tokens))
    save_icefall(tmp_path / "back.pt", load_checkpoint(tmp_path / "m.pt"))
    wanted, found = (torch.load(file, weights_only=True) for file in (path, tmp_path / "back.pt"))
    assert list(found) == ["model"] and list(found["model"]) == list(wanted["model"])
    for key, value in wanted["model"].items():
        assert found["model"][key].dtype == value.dtype and torch.equal(found["model"][key], value), key


def test_half_precision_stays_as_it_is(tmp_path):
    torch.save({"model": {name: value.half() for name, value in _weights().items()}}, tmp_path / "p.pt")
    assert {value.dtype for value in load_icefall(tmp_path / "p.pt", _tokens(6)).weights.values()} == {torch.float16}


def _respell(path, old, new):
    """The same archive with other bytes in its pickle."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in members if name.endswith("/data.pkl"))
    assert old in members[pickled]
    members[pickled] = members[pickled].replace(old, new)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_epoch_file_is_read(tmp_path, module):
    """Python 3.13 knows the class of a path by another module."""
    weights = _save_epoch(tmp_path / "epoch-1.pt")
    spelt = type(Path()).__module__
    _respell(tmp_path / "epoch-1.pt", f"c{spelt}\nPosixPath\n".encode(), f"c{module}\nPosixPath\n".encode())
    found = load_icefall(tmp_path / "epoch-1.pt", _tokens(6))
    assert found.model_config == SMALL and found.training_state is None
    assert all(torch.equal(found.weights[conformer_name(name)], value) for name, value in weights.items())
    assert len(found.weights) == len(weights)


ZIPFORMER_EPOCH = {
    "scheduler": {"base_lrs": [0.045], "epoch": 1, "batch": 16, "verbose": False},
    "grad_scaler": {"scale": 1.0, "growth_factor": 2.0},
    "sampler": {"epoch": 1, "shuffle": True},
    "cur_epoch": 1,
    "batch_idx_train": 16,
    # options as text, of which the weights show all but the last four
    "num_encoder_layers": "1,2,1",
    "downsampling_factor": "1,4,2",
    "encoder_dim": "16,32,24",
    "feedforward_dim": "24,32,24",
    "cnn_module_kernel": "7,5,7",
    "pos_dim": 12,
    "causal": True,
    "num_heads": "2,4,2",
    "encoder_unmasked_dim": "12,20,16",
    "chunk_size": "8,16,-1",
    "left_context_frames": "16,-1",
    "decoder_dim": 12,
    "joiner_dim": 20,
    "vocab_size": 11,
    "context_size": 2,
    "use_ctc": True,
    "exp_dir": PosixPath("zipformer/exp"),
    "env_info": {"torch-version": torch.__version__},
}
"""Entries that icefall's train.py writes to a Zipformer's epoch-N.pt beside the weights and their running mean."""


@pytest.mark.sweep
def test_epoch_file_of_a_zipformer_is_read(tmp_path):
    config = zipformer_model(11, replace(SMALL_ZIPFORMER, causal=True), decoder_dim=12, joiner_dim=20)
    heads = {"ctc_output.1.weight": torch.randn(11, 32), "simple_am_proj.bias": torch.randn(11)}
    checkpoint = Checkpoint(build_model(config).state_dict(), config, FbankConfig(), _tokens(11))
    weights = to_icefall(checkpoint) | heads
    mean = {name: value + 1 for name, value in weights.items()}
    optimizer = {"state": {0: {"step": 16, "param_rms": torch.ones(1)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
    content = {"model": weights, "model_avg": mean, "optimizer": optimizer, **ZIPFORMER_EPOCH}
    torch.save(content, tmp_path / "epoch-1.pt")
    loaded = load_icefall(tmp_path / "epoch-1.pt", _tokens(11))
    assert (loaded.model_config, loaded.provenance["epoch"], loaded.provenance["step"]) == (config, 1, 16)
    assert loaded.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(value, checkpoint.weights[name]) for name, value in loaded.weights.items())
    assert loaded.heads.keys() == {"ctc_head.weight", "simple_joiner.from_encoder.bias"}
    # unpublished widths: by default, no channel is masked
    torch.save({name: content[name] for name in content if name != "encoder_unmasked_dim"}, tmp_path / "epoch-2.pt")
    encoder = load_icefall(tmp_path / "epoch-2.pt", _tokens(11)).model_config.encoder
    assert encoder == replace(config.encoder, encoder_unmasked_dim=config.encoder.encoder_dim)
    for changes, fault in (
        ({"model": weights | {"ctc_output.1.bias": [1.0]}}, "ctc_output.1.bias is no dense floating-point tensor"),
        ({"num_heads": "2,x"}, "states a list that holds no numbers"),
        ({"num_heads": "2,4,3"}, "`num_heads` is 2,4,3, but 3 heads cannot share"),
        ({"context_size": 1}, "`context_size` is 1, but the weights have 2"),
        ({"chunk_size": "6"}, "`chunk_size` must be a multiple of 4, but is 6"),
    ):
        torch.save(content | changes, tmp_path / "epoch-1.pt")
        with pytest.raises(ValueError, match=f"epoch-1.pt is not a checkpoint of icefall's zipformer: .*{fault}"):
            load_icefall(tmp_path / "epoch-1.pt", _tokens(11))


def test_epoch_file_as_a_checkpoint_of_ours_names_the_way_to_convert_it(tmp_path):
    _save_epoch(tmp_path / "epoch-1.pt")
    with pytest.raises(ValueError, match="epoch-1.pt .*`transducer import`"):
        load_checkpoint(tmp_path / "epoch-1.pt")


def test_provenance_tells_the_file_its_hash_and_the_epoch(tmp_path):
    _save_epoch(tmp_path / "best-valid-loss.pt", cur_epoch=7)
    found = load_icefall(tmp_path / "best-valid-loss.pt", _tokens(6)).provenance
    assert found["imported"]["file"] == "best-valid-loss.pt" and len(found["imported"]["sha256"]) == 64
    assert (found["command"], found["epoch"], found["step"]) == ("transducer import", 7, 16)


def test_pretrained_file_has_no_epoch(golden):
    found = load_icefall(*_pretrained(golden, "r")).provenance
    # sha256sum
    assert found["imported"]["sha256"] == "5eb89fa31a367b2f4354a54bc0a039feb08a127634d40176a3e6bdc7fed08f04"
    assert "epoch" not in found and "step" not in found


def test_loading_draws_no_random_numbers(golden):
    before = torch.get_rng_state()
    load_icefall(*_pretrained(golden, "r"))
    assert torch.equal(torch.get_rng_state(), before)


FAULTS = {
    "missing": ({f"{LAYER}norm_ff.bias": None}, f"{LAYER}norm_ff.bias is missing"),
    "missing-that-shows-a-size": ({f"{LAYER}self_attn.pos_bias_u": None}, f"{LAYER}self_attn.pos_bias_u is missing"),
    "left-over": ({"joiner.encoder_proj.bias": torch.zeros(10)}, "joiner.encoder_proj.bias is left over"),
    "other-shape": (
        {"joiner.output_linear.weight": torch.zeros(5, 10)},
        r"joiner.output_linear.weight has shape \(5, 10\) instead of \(6, 10\)",
    ),
    "other-mel-bins": (
        {"encoder.encoder_embed.out.weight": torch.zeros(8, 72)},
        r"encoder.encoder_embed.out.weight has shape \(8, 72\) instead of \(8, 152\)",
    ),
    "too-few-axes": (
        {"decoder.embedding.weight": torch.zeros(6)},
        r"decoder.embedding.weight has shape \(6,\) instead of 2 axes or more",
    ),
    "empty": ({"decoder.embedding.weight": torch.zeros(0, 10)}, "`vocab_size` must be at least 1, but is 0"),
    "heads": (
        {f"{LAYER}self_attn.pos_bias_u": torch.zeros(3, 2)},
        "`num_heads` must divide `attention_dim`",
    ),
    "integers": (
        {"decoder.conv.weight": torch.zeros(10, 1, 2).long()},
        "decoder.conv.weight is no dense floating-point tensor",
    ),
    "no-tensor": ({"decoder.conv.weight": [1.0]}, "decoder.conv.weight is no dense floating-point tensor"),
    "layer-left-out": (
        {"encoder.encoder.layers.3.norm_ff.bias": torch.zeros(8)},
        "encoder.encoder.layers.2.feed_forward_macaron.0.weight is missing; .*; and 60 more",
    ),
    "absurd-layer": (
        {"encoder.encoder.layers.999999999.norm_ff.bias": torch.zeros(8)},
        "encoder.encoder.layers.2.feed_forward_macaron.0.weight is missing; .* more",
    ),
    "zipformer-without-a-stack": (
        {"encoder.encoders.x": torch.zeros(8)},
        "encoder.encoders.0.layers.0.conv_module1.depthwise_conv.weight is missing",
    ),
    "our-name": ({"encoder.layers.0.norm_ff.bias": torch.zeros(8)}, "encoder.layers.0.norm_ff.bias is left over"),
    "half-ddp": (
        {"joiner.output_linear.bias": None, "module.joiner.output_linear.bias": torch.zeros(6)},
        "joiner.output_linear.bias is missing; module.joiner.output_linear.bias is left over",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_weights_that_do_not_fit_are_named(tmp_path, case):
    changes, message = FAULTS[case]
    weights = {name: value for name, value in (_weights() | changes).items() if value is not None}
    torch.save({"model": weights}, tmp_path / "p.pt")
    recipe = RECIPE.replace("transducer_stateless_modified", "(zipformer|transducer_stateless_modified)")
    with pytest.raises(ValueError, match=f"p.pt {recipe}: {message}"):
        load_icefall(tmp_path / "p.pt", _tokens(6))


WEIGHTS = _weights(resized(SMALL, context_size=1))


@pytest.mark.parametrize("lost", WEIGHTS)
def test_no_weight_may_be_missing(lost):
    weights = {name: value for name, value in WEIGHTS.items() if name != lost}
    with pytest.raises(ValueError, match=f"{lost} is missing"):
        from_icefall(weights)


def test_sizes_that_a_file_states_must_be_those_of_its_weights(tmp_path):
    """Without its convolution, a decoder of context 2 looks like one of context 1."""
    weights = _weights()
    del weights["decoder.conv.weight"]
    _save_epoch(tmp_path / "epoch-0.pt", model=weights)
    message = f"epoch-0.pt {RECIPE}: it states that `context_size` is 2, but the weights have 1"
    with pytest.raises(ValueError, match=message):
        load_icefall(tmp_path / "epoch-0.pt", _tokens(6))


class _Malice:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def _save_own(path):
    save_checkpoint(path, Checkpoint(build_model(SMALL).state_dict(), SMALL, FbankConfig(), _tokens(6)))


def _save_half(path):
    _save_epoch(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _save_tar(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


BAD = {
    "absent": (lambda path: None, "p.pt: no such file"),
    "truncated": (_save_half, "p.pt is not a checkpoint, or is truncated"),
    "empty": (lambda path: path.touch(), r"p.pt: is empty \(0 bytes\)"),
    "tar": (_save_tar, "p.pt is not a checkpoint, or is truncated"),
    "before-torch-1.6": (
        lambda path: torch.save({"model": _weights()}, path, _use_new_zipfile_serialization=False),
        "p.pt is not a checkpoint, or is truncated",
    ),
    "bare-malice": (lambda path: path.write_bytes(pickle.dumps(_Malice(f"{path}x"))), "p.pt is not a checkpoint"),
    "other-zip": (
        lambda path: zipfile.ZipFile(path, "w").close(),
        "p.pt is not a checkpoint, or its pickle is damaged",
    ),
    "own": (_save_own, f"p.pt {RECIPES}: it is already one of stateless-transducer; there is nothing to import"),
    "no-dict": (lambda path: torch.save([1], path), f"p.pt {RECIPES}: it holds a list instead of a dict"),
    "no-model": (
        lambda path: torch.save({"state_dict": {}, "epoch": 1}, path),
        f"p.pt {RECIPES}: it has no `model` \\(but 'state_dict'; 'epoch'\\)",
    ),
    "bare-state-dict": (
        lambda path: torch.save(_weights(), path),
        f"p.pt {RECIPES}: it has no `model` \\(but 'encoder.encoder_embed.*; and 75 more\\)",
    ),
    "empty-dict": (lambda path: torch.save({}, path), f"p.pt {RECIPES}: it has no `model` \\(but nothing\\)"),
    "no-state-dict": (lambda path: torch.save({"model": [1]}, path), f"p.pt {RECIPES}: its `model` is no state dict"),
    "empty-model": (
        lambda path: torch.save({"model": {}}, path),
        f"p.pt {RECIPE}: decoder.embedding.weight is missing",
    ),
    "malice": (
        lambda path: _save_epoch(path, sampler=_Malice(f"{path}x")),
        r"p.pt is refused: it holds objects other than tensors and plain values \((posix|nt).mkdir\), which could",
    ),
    "malice-in-weights": (lambda path: _save_epoch(path, model=_Malice(f"{path}x")), "p.pt is refused: it holds"),
    "other-class": (
        lambda path: _save_epoch(path, lr_factor=Fraction(5)),
        r"p.pt is refused: it holds objects other than .* \(fractions.Fraction\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_file_that_is_no_checkpoint_of_icefalls_is_refused_and_not_executed(tmp_path, case):
    make, message = BAD[case]
    make(tmp_path / "p.pt")
    with pytest.raises(ValueError, match=message):
        load_icefall(tmp_path / "p.pt", _tokens(6))
    assert not (tmp_path / "p.ptx").exists()


def test_damaged_pickle_is_refused(tmp_path):
    _save_epoch(tmp_path / "p.pt")
    _respell(tmp_path / "p.pt", b"X\x05\x00\x00\x00model", b"\xff\x05\x00\x00\x00model")
    with pytest.raises(ValueError, match="p.pt is not a checkpoint, or its pickle is damaged"):
        load_icefall(tmp_path / "p.pt", _tokens(6))


def test_tokens_of_another_model_are_refused(tmp_path):
    torch.save({"model": _weights()}, tmp_path / "p.pt")
    with pytest.raises(ValueError, match="p.pt is a model of 6 tokens, but `lang_dir` has 7; pass the one"):
        load_icefall(tmp_path / "p.pt", _tokens(7))


def test_blank_must_be_the_first_token(tmp_path):
    torch.save({"model": _weights()}, tmp_path / "p.pt")
    tokens = TokenTable(tuple(reversed(_tokens(6).symbols)))
    with pytest.raises(ValueError, match="blank of icefall's models is token 0, but in `lang_dir` it is 5"):
        load_icefall(tmp_path / "p.pt", tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"subsampling_channels": 4},
            "channels as the encoder is wide, 8, but `subsampling_channels` is 4",
        ),
        ({"feature_norm": "mean"}, "icefall's encoder does not normalize features, but `feature_norm` is mean"),
        ({"blank_id": 5}, "The blank of icefall's models is token 0, but here it is 5"),
        (
            {"num_layers": 3},
            "do not fit the model: encoder.layers.2.feed_forward_macaron.0.weight is missing",
        ),
    ],
)
def test_model_that_icefall_lacks_is_not_written(tmp_path, changes, message):
    config = resized(SMALL, **changes)
    weights = build_model(resized(config, num_layers=2)).state_dict()
    with pytest.raises(ValueError, match=message):
        save_icefall(tmp_path / "p.pt", Checkpoint(weights, config, FbankConfig(), _tokens(6)))
    assert not (tmp_path / "p.pt").exists()


def test_explicit_width_of_the_subsampling_is_icefalls(tmp_path):
    config = resized(SMALL, subsampling_channels=8)
    checkpoint = Checkpoint(build_model(config).state_dict(), config, FbankConfig(), _tokens(6))
    assert from_icefall(to_icefall(checkpoint))[1] == SMALL
