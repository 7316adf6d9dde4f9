"""Small models trained by icefall: its numbers and its words must come out (tests/golden/README.md)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from as_on_a_device import beam_search_in_arrays
from model_sizes import conformer_model
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from stateless_transducer.decoding.beam import beam_search
from stateless_transducer.decoding.greedy import greedy_search
from stateless_transducer.decoding.modified_beam import modified_beam_search
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.icefall_layouts import conformer_name
from stateless_transducer.model.transducer import build_model

GOLDEN = Path(__file__).parents[1] / "golden" / "icefall"
BATCHES = [f"b{k}" for k in range(8)]
FEW_BATCHES = [BATCHES[0], *(pytest.param(name, marks=pytest.mark.sweep) for name in BATCHES[1:])]
MODELS = ("r", "b")  # context 2 with random weights; context 1, trained


@cache
def _load(name):
    folder = GOLDEN / name
    sizes = json.loads((folder / "config.json").read_text())["config"]
    model = build_model(
        conformer_model(
            vocab_size=sizes["vocab_size"],
            num_layers=sizes["num_encoder_layers"],
            attention_dim=sizes["attention_dim"],
            num_heads=sizes["nhead"],
            feedforward_dim=sizes["dim_feedforward"],
            joiner_dim=sizes["encoder_out_dim"],
            context_size=sizes["context_size"],
        )
    )
    weights = torch.load(folder / "pretrained.pt", weights_only=True)["model"]
    model.load_state_dict({conformer_name(key): value for key, value in weights.items()})
    return model.eval(), load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")


def _padded(packed, lens, value):
    return pad_sequence(packed.split(lens.tolist()), batch_first=True, padding_value=value)


def _encoded(name, batch, device):
    model, inputs, _ = _load(name)
    lens = inputs[f"{batch}.x_lens"].long()
    features = _padded(inputs[f"{batch}.x"].float(), lens, PADDING_VALUE)
    with torch.no_grad():
        return model.to(device).encode(features.to(device), lens.to(device))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_encoder_output_equals_icefalls(name, batch, device):
    found, lens = _encoded(name, batch, device)
    wanted = _load(name)[2]
    assert lens.tolist() == wanted[f"{batch}.encoder_out_lens"].tolist()
    packed = torch.cat([row[:length] for row, length in zip(found, lens.tolist(), strict=True)])
    # the tolerance measured for the original against itself in float64 is 6e-6
    torch.testing.assert_close(packed.cpu(), wanted[f"{batch}.encoder_out"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", MODELS)
def test_decoder_and_joiner_equal_icefalls(name, device):
    model, _, wanted = _load(name)
    model.to(device)
    with torch.no_grad():
        predicted = model.predict(wanted["dec.contexts"].long().to(device)).cpu()
        torch.testing.assert_close(predicted, wanted["dec.out"][:, 0], rtol=0, atol=1e-6)
        frames = torch.stack([wanted[f"b{b}.encoder_out"][row] for b, row, _ in wanted["joiner.rows"].tolist()])
        contexts = wanted["dec.out"][wanted["joiner.rows"][:, 2].long(), 0]
        logits = model.join(frames.to(device), contexts.to(device)).cpu()
    torch.testing.assert_close(logits, wanted["joiner.logits"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("modified", [False, True], ids=["standard", "modified"])
@pytest.mark.parametrize("batch", ["b0", "b1", "b3", "b4", "b6"])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_norm_equal_icefalls(name, batch, modified, device):
    model, inputs, _ = _load(name)
    lens, token_lens = (inputs[f"{batch}.{key}"].long() for key in ("x_lens", "y_lens"))
    features = _padded(inputs[f"{batch}.x"].float(), lens, PADDING_VALUE)
    tokens = _padded(inputs[f"{batch}.y"].long(), token_lens, 1)
    wanted = json.loads((GOLDEN / name / "losses.json").read_text())[f"{batch}.prob{int(modified)}"]
    arguments = (tensor.to(device) for tensor in (features, lens, tokens, token_lens))
    nll = model.to(device)(*arguments, max_symbols_per_frame=1 if modified else None)
    truth = torch.tensor(wanted["per_utterance"], dtype=torch.float64)
    torch.testing.assert_close(nll.detach().cpu(), truth, rtol=1e-5, atol=1e-5)
    model.zero_grad()
    nll.sum().backward()
    norm = torch.sqrt(sum(p.grad.double().pow(2).sum() for p in model.parameters())).item()
    assert norm == pytest.approx(wanted["total_grad_norm"], rel=1e-4)


def _agree(found, wanted):
    """Hypotheses equal where icefall's own do not change with rounding."""
    stable = [n for n, is_stable in enumerate(wanted["stable"]) if is_stable]
    assert len(stable) > 0
    assert [list(found[n].tokens) for n in stable] == [wanted["hyps"][n] for n in stable]


def _agree_ranked(found, wanted):
    """The best hypotheses and their log-probabilities; the others follow by score per token."""
    best = [ranked[0] for ranked in found]
    _agree(best, wanted)
    for n, is_stable in enumerate(wanted["stable"]):
        if is_stable:
            assert best[n].score == pytest.approx(wanted["log_probs"][n], abs=2e-4, rel=1e-4)


def _wanted(name, batch, method):
    return json.loads((GOLDEN / name / "hyps.json").read_text())[batch][method]


@pytest.mark.parametrize("symbols", [1, 2, 3])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_greedy_search_says_icefalls_words(name, batch, symbols, device):
    found = greedy_search(_load(name)[0], *_encoded(name, batch, device), max_symbols_per_frame=symbols)
    _agree(found, _wanted(name, batch, f"greedy_search_sym{symbols}"))


@pytest.mark.parametrize("beam_size", [2, 4, 8])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_modified_beam_search_says_icefalls_words(name, batch, beam_size, device):
    found = modified_beam_search(_load(name)[0], *_encoded(name, batch, device), beam_size=beam_size)
    _agree_ranked(found, _wanted(name, batch, f"modified_beam_search_beam{beam_size}"))


@pytest.mark.parametrize("find", [beam_search, beam_search_in_arrays])
@pytest.mark.parametrize("beam_size", [2, 4, 8])
@pytest.mark.parametrize("batch", FEW_BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_beam_search_says_icefalls_words(name, batch, beam_size, find, device):
    found = find(_load(name)[0], *_encoded(name, batch, device), beam_size=beam_size)
    _agree_ranked(found, _wanted(name, batch, f"beam_search_beam{beam_size}"))
