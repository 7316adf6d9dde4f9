from __future__ import annotations

import json

import pytest
import torch
from model_sizes import conformer_model, resized
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.icefall_layouts import conformer_name
from stateless_transducer.model.conformer import Conv2dSubsampling, ConvolutionModule
from stateless_transducer.model.layers import depthwise
from stateless_transducer.model.transducer import build_model

SMALL = conformer_model(
    vocab_size=11, num_layers=2, attention_dim=24, num_heads=3, feedforward_dim=40, conv_kernel=7, joiner_dim=20
)


def test_full_model_has_the_tutorials_parameters():
    with torch.device("meta"):
        model = build_model(conformer_model(vocab_size=4336))
    assert sum(parameter.numel() for parameter in model.parameters()) == 87_939_824


def test_full_model_has_icefalls_names_and_shapes(golden):
    with torch.device("meta"):
        ours = {
            name: list(value.shape)
            for name, value in build_model(conformer_model(vocab_size=4336)).state_dict().items()
        }
    theirs = json.loads((golden / "state_dict_keys_full.json").read_text())
    assert ours == {conformer_name(name): shape for name, shape in theirs.items()}


def _utterances(lens):
    return [torch.randn(length, 80) for length in lens]


@pytest.mark.parametrize("feature_norm", ["none", "mean", "level", "global"])
@pytest.mark.parametrize("lens", [(7, 41, 120), (200, 8, 9, 33)])
def test_utterance_alone_equals_utterance_in_a_padded_batch(lens, feature_norm, device):
    model = build_model(resized(SMALL, feature_norm=feature_norm)).eval().to(device)
    utterances = [u.to(device) for u in _utterances(lens)]
    # 1e4 behind the end: nothing of it may come through
    batch = pad_sequence(utterances, batch_first=True, padding_value=1e4)
    together, together_lens = model.encode(batch, torch.tensor(lens, device=device))
    for n, utterance in enumerate(utterances):
        alone, alone_lens = model.encode(utterance[None], torch.tensor([lens[n]], device=device))
        assert alone_lens[0] == together_lens[n]
        # rounding of float32 through two layers; outputs are of order 1
        torch.testing.assert_close(together[n, : alone_lens[0]], alone[0], rtol=0, atol=1e-5)


def test_loss_alone_equals_loss_in_a_batch(device):
    model = build_model(SMALL).eval().to(device)
    lens, token_lens = torch.tensor([90, 50, 64]), torch.tensor([5, 0, 9])
    features = pad_sequence(_utterances(lens.tolist()), batch_first=True, padding_value=PADDING_VALUE)
    tokens = torch.randint(1, 11, (3, 9))
    together = model(features.to(device), lens.to(device), tokens.to(device), token_lens.to(device))
    for n in range(3):
        alone = model(
            features[n : n + 1, : lens[n]].to(device),
            lens[n : n + 1].to(device),
            tokens[n : n + 1, : token_lens[n]].to(device),
            token_lens[n : n + 1].to(device),
        )
        torch.testing.assert_close(together[n], alone[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("context_size", [1, 2, 3])
def test_predict_equals_the_decoders_row_of_the_same_prefix(context_size, device):
    model = build_model(resized(SMALL, context_size=context_size)).to(device)
    tokens = torch.randint(1, 11, (1, 6), device=device)
    rows = model.decoder.all_prefixes(tokens)
    assert rows.shape == (1, 7, 20)
    padded = torch.nn.functional.pad(tokens, (context_size, 0))
    for u in range(7):
        torch.testing.assert_close(model.predict(padded[:, u : u + context_size])[0], rows[0, u])


def test_gradient_reaches_every_parameter(device):
    model = build_model(SMALL).to(device)
    features = torch.randn(2, 60, 80, device=device)
    tokens = torch.randint(1, 11, (2, 4), device=device)
    model(features, torch.tensor([60, 50], device=device), tokens, torch.tensor([4, 3], device=device)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_subsampling_is_the_same_in_training(device):
    module = Conv2dSubsampling(20, 3, 5).to(device, torch.float64)
    features = torch.randn(2, 17, 20, device=device, dtype=torch.float64)
    outputs = [module.train(mode)(features) for mode in (True, False)]
    torch.testing.assert_close(*outputs)
    weights = torch.randn_like(outputs[0])
    torch.testing.assert_close(*(torch.autograd.grad((y * weights).sum(), (*module.parameters(),)) for y in outputs))


@pytest.mark.parametrize("num_channels", [8, 16, 24])
def test_narrow_convolutions_in_16_bits_end(num_channels, device):
    """With some processors and channels last, they did not."""
    x, conv = (
        torch.randn(1, 40, num_channels, device=device),
        torch.nn.Conv1d(num_channels, num_channels, 31, groups=num_channels, device=device),
    )
    expected = conv(F.pad(x.transpose(1, 2), (15, 15))).transpose(1, 2)
    with torch.autocast(device.type, torch.bfloat16):
        actual = depthwise(x, conv, padding=15)
    # 8 bits of each of 31 products
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(("past", "chunk"), [(2, -1), (4, -1), (4, 3), (2, 3), (2, 1), (2, 9)])
def test_convolution_module_equals_plain_convolutions(past, chunk, device):
    module = ConvolutionModule(6, 5, past).to(device, torch.float64)
    padding = torch.tensor([[False] * 9, [False] * 7 + [True] * 2], device=device)

    def plain(x):
        gated = F.glu(module.pointwise_conv1(x.transpose(1, 2)), dim=1).masked_fill(padding[:, None], 0)
        # the frames up to the end of each chunk, and zeros after it
        ends = [min(start + chunk, 9) for start in range(0, 9, chunk)] if chunk > 0 else [9]
        parts = [module.depthwise_conv(F.pad(gated[:, :, :end], (past, 4 - past))) for end in ends]
        begins = [0, *ends]
        convolved = torch.cat([part[:, :, begin:] for begin, part in zip(begins, parts, strict=False)], dim=2)
        return module.pointwise_conv2(F.silu(module.norm(convolved.transpose(1, 2))).transpose(1, 2)).transpose(1, 2)

    x = torch.randn(2, 9, 6, device=device, dtype=torch.float64, requires_grad=True)
    expected, actual = plain(x), module(x, padding, chunk)
    torch.testing.assert_close(actual, expected)
    leaves, weights = (x, *module.parameters()), torch.randn_like(expected)
    gradients = (torch.autograd.grad((y * weights).sum(), leaves) for y in (actual, expected))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "`num_heads` must divide `attention_dim`, but 24 / 5"),
        ({"conv_kernel": 8}, "`conv_kernel` must be odd, but is 8"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1, but is 1"),
        ({"num_layers": 0}, "`num_layers` must be .*1.*, but is 0"),
        ({"blank_id": 11}, "`blank_id` must be in 0..10, but is 11"),
        ({"decoder_dim": 16}, "`decoder_dim` must be `joiner_dim` 20 without `joiner_proj`, but is 16"),
        ({"decoder_conv": "grouped", "joiner_dim": 18}, "`decoder_dim` must be a multiple of 4 .*, but is 18"),
    ],
)
def test_bad_size_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        resized(SMALL, **change)
