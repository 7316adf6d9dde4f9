"""The Zipformer against outputs of icefall's original code, from its checkpoint to its hypotheses.

Batches are padded as icefall pads them, and `pads_like_icefall` lets the padding act as it does there. Tolerances are
those of the golden set, measured by running the original in float64.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from model_sizes import zipformer_model
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from stateless_transducer.decoding.greedy import greedy_search
from stateless_transducer.decoding.modified_beam import modified_beam_search
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.icefall import load_icefall
from stateless_transducer.icefall_layouts import icefall_zipformer_name, zipformer_name
from stateless_transducer.model import regularize, zipformer, zipformer_layer
from stateless_transducer.model.config import ZIPFORMER_SIZES
from stateless_transducer.model.frozen import FrozenTransducer
from stateless_transducer.model.transducer import build_model
from stateless_transducer.ops.pruned_loss import PruneRanges, simple_transducer_loss
from stateless_transducer.text.tokens import SPECIAL, TokenTable

MODELS = ("offline", "causal")
CHUNKS = {"": (-1, -1), "c16_l64.": (16, 64), "c16_lall.": (16, -1), "c32_l128.": (32, 128), "c64_l256.": (64, 256)}
STATED = ("num_heads", "chunk_size", "left_context_frames", "encoder_unmasked_dim")


class Golden:
    """One of the two models, with its inputs and outputs."""

    def __init__(self, folder):
        self.folder = folder
        sizes = json.loads((folder / "config.json").read_text())["config"]
        table = TokenTable((*SPECIAL, *(chr(0x4E00 + i) for i in range(sizes["vocab_size"] - len(SPECIAL)))))
        stated = {name: [int(number) for number in sizes[name].split(",")] for name in STATED}
        self.checkpoint = load_icefall(folder / "pretrained.pt", table, sizes=stated)
        encoder = replace(self.checkpoint.model_config.encoder, pads_like_icefall=True)
        config = replace(self.checkpoint.model_config, encoder=encoder)
        self.model = replace(self.checkpoint, model_config=config).model()
        self.heads = {name: _linear(self.checkpoint.heads, name) for name in _head_names(self.checkpoint.heads)}
        self.inputs, self.outputs = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs"))

    def batch(self, name):
        lens = self.inputs[f"{name}.x_lens"].long()
        return _padded(self.inputs[f"{name}.x"].float(), lens, PADDING_VALUE), lens

    def tokens(self, name):
        lens = self.inputs[f"{name}.y_lens"].long()
        return _padded(self.inputs[f"{name}.y"].long(), lens, 0), lens

    def json(self, name):
        return json.loads((self.folder / name).read_text())


def _head_names(heads):
    return {name.rpartition(".")[0] for name in heads}


def _linear(heads, name):
    weight, bias = heads[f"{name}.weight"], heads[f"{name}.bias"]
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear


def _padded(packed, lens, value):
    return pad_sequence(packed.split(lens.tolist()), batch_first=True, padding_value=value)


def _packed(rows, lens):
    return torch.cat([row[:length] for row, length in zip(rows, lens.tolist(), strict=True)])


@pytest.fixture(scope="module", params=MODELS)
def golden(request, zipformer_golden):
    return Golden(zipformer_golden / request.param)


few_batches = pytest.mark.parametrize(
    "batches", [range(2), pytest.param(range(2, 6), marks=pytest.mark.sweep)], ids=["b0-b1", "b2-b5"]
)


@few_batches
@torch.inference_mode()
def test_encoder_output_equals_icefalls(golden, batches):
    for name, chunks in CHUNKS.items():
        if f"b0.{name}encoder_out" not in golden.outputs:
            continue
        golden.model.encoder.use_chunks(*chunks)
        for b in batches:
            found, lens = golden.model.encode_frames(*golden.batch(f"b{b}"))
            assert lens.tolist() == golden.outputs[f"b{b}.encoder_out_lens"].tolist()
            expected = golden.outputs[f"b{b}.{name}encoder_out"]
            torch.testing.assert_close(_packed(found, lens), expected, rtol=0, atol=1e-4, msg=f"{name}b{b}")
    golden.model.encoder.use_chunks(-1, -1)


@pytest.mark.parametrize("chunks", [(16, 64), pytest.param((32, 128), marks=pytest.mark.sweep)], ids=str)
@torch.inference_mode()
def test_chunk_by_chunk_equals_icefalls_streaming(zipformer_golden, chunks):
    """Outputs and states; icefall's last chunks are filled up with silence, all frames of which count."""
    golden = Golden(zipformer_golden / "causal")
    encoder, name = golden.model.encoder, "c{}_l{}".format(*chunks)
    encoder.use_chunks(*chunks)
    expected = load_file(golden.folder / "streaming" / "streaming.safetensors")
    utterances = golden.json("streaming/hyps.json")["utterances"]
    for u, place in utterances.items():
        features, lens = golden.batch(f"b{place['batch']}")
        features = features[place["utterance"], : lens[place["utterance"]]]
        padded = nn.functional.pad(features, (0, 0, 0, 43), value=PADDING_VALUE)
        out, states = _chunk_by_chunk(encoder, padded)
        torch.testing.assert_close(out, expected[f"{name}.{u}.streaming"], rtol=0, atol=1e-4)
        if u == "u0":
            for after, state in ((1, states[0]), (2, states[1]), ("final", states[-1])):
                _compare_state(state, expected, f"{name}.u0.state_after_chunk_{after}")


def _chunk_by_chunk(encoder, features):
    """Map (T_in, F) to frames (T, D), and return the state after each chunk."""
    state, outputs, states = encoder.initial_state(1), [], []
    for first in range(0, len(features), encoder.chunk_shift):
        chunk = features[first : first + encoder.chunk_frames]
        chunk = nn.functional.pad(chunk, (0, 0, 0, encoder.chunk_frames - len(chunk)), value=PADDING_VALUE)
        out, state = encoder.encode_chunk(chunk[None], state)
        outputs.append(out[0])
        states.append(state)
    return torch.cat(outputs), states


def _compare_state(state, expected, name):
    """Compare with icefall's state, which has the streams on other axes."""
    assert expected[f"{name}.processed_lens"].tolist() == state.num_frames.tolist()
    states = {"embed_states": state.embedded}
    for i, layer in enumerate(layer for stack in state.stacks for layer in stack):
        states |= {f"cached_key_{i}": layer.keys.transpose(0, 1), f"cached_nonlin_attn_{i}": layer.gated[None]}
        states |= {f"cached_val{k}_{i}": layer[1 + k].transpose(0, 1) for k in (1, 2)}
        states |= {f"cached_conv{k}_{i}": layer[3 + k].transpose(1, 2) for k in (1, 2)}
    for key, value in states.items():
        torch.testing.assert_close(value, expected[f"{name}.{key}"], rtol=0, atol=1e-4, msg=f"{name}.{key}")


@torch.inference_mode()
def test_output_of_each_stack_equals_icefalls(golden):
    features, lens = golden.batch("b2")
    stacks, ends = golden.model.encoder.stack_outputs(features, lens)
    embedded = golden.model.encoder.embed(features, ends)
    for name, found in [
        ("embed.out_norm", embedded),
        *((f"stack{i}", x.transpose(0, 1)) for i, x in enumerate(stacks)),
    ]:
        torch.testing.assert_close(found, golden.outputs[f"act.b2.{name}"], rtol=0, atol=1e-4, msg=name)


@torch.inference_mode()
def test_decoder_joiner_and_heads_equal_icefalls(golden):
    model, outputs = golden.model, golden.outputs
    contexts = outputs["dec.contexts"].long()
    found = model.decoder(contexts)
    torch.testing.assert_close(found, outputs["dec.out"], rtol=0, atol=1e-6)
    padded = nn.functional.pad(outputs["dec.y"].long(), (model.context_size - 1, 0), value=-1)
    torch.testing.assert_close(model.decoder(padded), outputs["dec.out_padded"], rtol=0, atol=1e-6)
    rows = outputs["joiner.rows"].long()
    frames = torch.stack([outputs[f"b{b}.encoder_out"][row] for b, row, _ in rows.tolist()])
    encoder_out = model.joiner.encoder_proj(frames)
    decoder_out = model.joiner.decoder_proj(found[rows[:, 2], 0])
    torch.testing.assert_close(encoder_out, outputs["joiner.encoder_proj"], rtol=0, atol=1e-4)
    torch.testing.assert_close(decoder_out, outputs["joiner.decoder_proj"], rtol=0, atol=1e-4)
    torch.testing.assert_close(model.join(encoder_out, decoder_out), outputs["joiner.logits"], rtol=0, atol=1e-4)
    heads = golden.heads
    torch.testing.assert_close(
        heads["simple_joiner.from_encoder"](frames), outputs["simple_am_proj"], rtol=0, atol=1e-4
    )
    if "ctc_head" in heads:
        ctc = heads["ctc_head"](frames).log_softmax(-1)
        torch.testing.assert_close(ctc, outputs["ctc.log_probs"], rtol=0, atol=1e-4)


@few_batches
@pytest.mark.parametrize("freeze", [False, True], ids=["plain", "frozen"])
@torch.inference_mode()
def test_searches_find_icefalls_hypotheses(golden, freeze, batches):
    hypotheses = golden.json("hyps.json")
    for key in ("", ".c16_l64"):
        if f"b0{key}" not in hypotheses:
            continue
        golden.model.encoder.use_chunks(*CHUNKS[f"{key[1:]}." if key else ""])
        model = FrozenTransducer(golden.model) if freeze else golden.model
        for b in batches:
            encoded, lens = golden.model.encode(*golden.batch(f"b{b}"))
            expected = hypotheses[f"b{b}{key}"]["results"]
            greedy = greedy_search(model, encoded, lens, max_symbols_per_frame=1)
            for found, wanted in zip(greedy, expected["greedy_search_batch"], strict=True):
                assert not wanted["stable"] or list(found.tokens) == wanted["tokens"]
                assert not wanted["stable_timestamps"] or list(found.frames) == wanted["timestamps"]
            beam = modified_beam_search(model, encoded, lens, beam_size=4)
            for ranked, wanted in zip(beam, expected["modified_beam_search_beam4"], strict=True):
                assert not wanted["stable"] or list(ranked[0].tokens) == wanted["tokens"]
                assert not wanted["stable"] or ranked[0].score == pytest.approx(wanted["log_prob"], abs=1e-3)
    golden.model.encoder.use_chunks(-1, -1)


def _losses(golden, name):
    """Simple and pruned loss as in training, with the golden pruning ranges."""
    model, (tokens, token_lens) = golden.model, golden.tokens(name)
    frames, lens = model.encode_frames(*golden.batch(name))
    simple = simple_transducer_loss(
        golden.heads["simple_joiner.from_encoder"](frames),
        lens,
        golden.heads["simple_joiner.from_decoder"](model.decoder.all_prefixes(tokens)),
        tokens,
        token_lens,
        blank=0,
        max_symbols_per_frame=None,
        lm_only_scale=0.25,
        am_only_scale=0.0,
        inf_is="inf",
    )
    ranges = golden.outputs[f"{name}.prune_ranges"].long()
    band = PruneRanges(ranges[:, :, 0], ranges.shape[2])
    pruned = model.nll(model.joiner.encoder_proj(frames), lens, tokens, token_lens, band=band)
    ctc = torch.tensor(0.0)
    if "ctc_head" in golden.heads:
        log_probs = golden.heads["ctc_head"](frames).log_softmax(-1).transpose(0, 1)
        ctc = nn.functional.ctc_loss(log_probs, tokens, lens, token_lens, reduction="sum")
    return simple.nll, pruned, ctc


@torch.no_grad()
def test_losses_equal_icefalls(golden):
    for entry in golden.json("losses.json")["losses"]:
        if (entry["am_scale"], entry["lm_scale"], entry["prune_range"]) != (0, 0.25, 5) or "mode" in entry:
            continue
        simple, pruned, _ = _losses(golden, f"b{entry['batch']}")
        spread = max(1e-5, 3 * entry["pruned_loss_spread"])
        assert simple.sum().item() == pytest.approx(entry["simple_loss"], rel=1e-5)
        assert pruned.sum().item() == pytest.approx(entry["pruned_loss"], rel=spread)


@pytest.mark.parametrize("kind", [pytest.param("plain", marks=pytest.mark.sweep), "regularised"])
def test_gradient_of_a_training_step_equals_icefalls(zipformer_golden, kind, monkeypatch):
    """In training mode with all randomness fixed: every correction of a gradient never acts, or always."""
    golden = Golden(zipformer_golden / "offline")
    run = json.loads((zipformer_golden / "train" / "trajectory.json").read_text())[kind]

    def chance(probability):
        return kind == "regularised" and probability > 0

    for module in (regularize, zipformer_layer):
        monkeypatch.setattr(module, "chance", chance)
    monkeypatch.setattr(zipformer, "_POSITION_DROPOUT", 0.0)
    monkeypatch.setattr(zipformer, "_FEATURE_MASK_RATE", 0.0)
    for module in golden.model.modules():
        for name, rate in list(module.named_children()):
            if isinstance(rate, regularize.Schedule) and ("rate" in name or name == "dropout"):
                setattr(module, name, regularize.Schedule((0, 0.0)))
    golden.model.train()
    regularize.set_batch_count(golden.model, 0 if kind == "plain" else 5000)
    row = run["rows"][0]
    simple, pruned, ctc = (loss.sum() for loss in _losses(golden, f"b{row['batch']}"))
    # the first of 2000 batches of warm-up
    loss = 0.99975 * simple + 0.10045 * pruned + 0.2 * ctc
    assert loss.item() == pytest.approx(row["loss"], rel=1e-5)
    loss.backward()
    parameters = {name: value for name, value in golden.model.named_parameters() if value.requires_grad}
    parameters |= {
        f"{name}.{part}": value for name, head in golden.heads.items() for part, value in head.named_parameters()
    }
    total = math.sqrt(sum(value.grad.double().square().sum() for value in parameters.values()))
    assert total == pytest.approx(row["grad_norm"], rel=1e-3)
    expected = {zipformer_name(name): norm for name, norm in run["gradient_norms_step1"].items()}
    compared = 0
    for name, norm in expected.items():
        if norm is not None and norm > 1e-3:
            # corrections are steps, which rounding takes or not: in float64, too, single norms change by 1e-3 and more
            tolerance = 1e-3 if kind == "plain" else 1e-2
            assert parameters[name].grad.norm().item() == pytest.approx(norm, rel=tolerance), name
            compared += 1
    assert compared > 250


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "size", "causal"), [("offline", "m", False), ("causal", "m", True)])
@torch.inference_mode()
def test_full_size_equals_icefalls(zipformer_golden, name, size, causal, monkeypatch):
    folder = zipformer_golden / "full"
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import full_weights

    facts = json.loads((folder / "full.json").read_text())
    encoder = replace(ZIPFORMER_SIZES[size], causal=causal)
    model = build_model(zipformer_model(4336 if name == "offline" else 500, encoder)).eval()
    for ours, parameter in model.named_parameters():
        theirs = icefall_zipformer_name(ours, encoder.downsampling_factor)
        parameter.copy_(torch.from_numpy(full_weights.weight(theirs, tuple(parameter.shape), facts["salt"])))
    outputs = load_file(folder / "outputs.safetensors")
    features = torch.from_numpy(full_weights.features(facts["features_salt"][name])).float()[None]
    for mode, chunks in [("full", (-1, -1)), ("c16_l128", (16, 128))][: 1 + causal]:
        model.encoder.use_chunks(*chunks)
        found, _ = model.encode_frames(features, torch.tensor([features.shape[1]]))
        torch.testing.assert_close(found[0, ::2], outputs[f"{name}.{mode}.encoder_out_every2"], rtol=0, atol=1e-4)
    if causal:
        streamed, _ = _chunk_by_chunk(model.encoder, features[0])
        expected = outputs[f"{name}.{mode}.streaming_every2"]
        torch.testing.assert_close(streamed[::2][: len(expected)], expected, rtol=0, atol=1e-4)
