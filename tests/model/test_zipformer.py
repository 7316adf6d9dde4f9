"""The Zipformer by itself; tests/test_zipformer_golden.py compares it with icefall's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from model_sizes import SMALL_ZIPFORMER, resized, zipformer_model
from torch.nn.utils.rnn import pad_sequence

from stateless_transducer.checkpoint import Checkpoint, skeleton
from stateless_transducer.export.streaming_layouts import streaming_layout
from stateless_transducer.features import FbankConfig
from stateless_transducer.icefall import save_icefall
from stateless_transducer.icefall_layouts import zipformer_name
from stateless_transducer.model import zipformer_layer
from stateless_transducer.model.chunks import WHOLE
from stateless_transducer.model.config import ZIPFORMER_SIZES, ModelConfig
from stateless_transducer.model.regularize import Schedule, set_batch_count
from stateless_transducer.model.transducer import build_model
from stateless_transducer.model.zipformer_parts import drop_channels
from stateless_transducer.text.tokens import build_token_table

SMALL = zipformer_model(11, SMALL_ZIPFORMER, decoder_dim=12, joiner_dim=20)
CAUSAL = replace(SMALL, encoder=replace(SMALL_ZIPFORMER, causal=True))


@pytest.mark.parametrize(
    ("name", "causal", "vocab_size", "context_size", "parameters"),
    [
        # icefall's RESULTS.md, without the two projections of the simple loss
        ("s", False, 500, 2, 23_285_615 - 128_500 - 256_500),
        ("s", True, 500, 2, 23_627_887 - 128_500 - 256_500),
        ("m", False, 500, 2, 65_549_011 - 2 * 256_500),
        ("m", True, 500, 2, 66_110_931 - 2 * 256_500),
        ("m", False, 4336, 1, 73_412_551 - 2 * 2_224_368),
        ("l", False, 500, 2, 148_439_574 - 384_500 - 256_500),
    ],
)
def test_published_size_has_icefalls_parameters(name, causal, vocab_size, context_size, parameters):
    encoder = replace(ZIPFORMER_SIZES[name], causal=causal)
    with torch.device("meta"):
        model = build_model(zipformer_model(vocab_size, encoder, context_size=context_size))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def _disturbed(config: ModelConfig):
    """A model none of whose parameters is at its initial value, where zeros would hide faults."""
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("chunks", [None, (-1, -1), (8, 16), (16, -1)], ids=str)
def test_utterance_alone_equals_utterance_in_a_padded_batch(chunks, device):
    model = _disturbed(SMALL if chunks is None else CAUSAL).to(device)
    if chunks is not None:
        model.encoder.use_chunks(*chunks)
    # 5 frames at 50 per second are less than a chunk; 8 feature frames are too few for one
    lens = (9, 17, 8, 100, 61, 12)
    utterances = [torch.randn(length, 80, device=device) for length in lens]
    # 1e4 behind the end: nothing of it may come through
    batch = pad_sequence(utterances, batch_first=True, padding_value=1e4)
    together, together_lens = model.encode(batch, torch.tensor(lens, device=device))
    assert together_lens.tolist() == [1, 3, 0, 23, 14, 1] and together.isfinite().all()
    for n, utterance in enumerate(utterances):
        if lens[n] < 9:
            continue
        alone, alone_lens = model.encode(utterance[None], torch.tensor([lens[n]], device=device))
        assert alone_lens.tolist() == [alone.shape[1]]
        # rounding of float32 through four layers; outputs are of order 1
        torch.testing.assert_close(together[n, : alone_lens[0]], alone[0], rtol=0, atol=2e-5)


def test_icefalls_padding_reaches_the_ends_of_shorter_utterances():
    config = replace(SMALL, encoder=replace(SMALL_ZIPFORMER, pads_like_icefall=True))
    model = _disturbed(config)
    batch, lens = torch.randn(2, 100, 80), torch.tensor([100, 50])
    together, _ = model.encode(batch, lens)
    longest, shorter = (model.encode(batch[n : n + 1, : lens[n]], lens[n : n + 1])[0][0] for n in (0, 1))
    torch.testing.assert_close(together[0], longest, rtol=0, atol=2e-5)
    assert (together[1, : len(shorter)] - shorter)[-1].abs().max() > 1e-3


def test_frame_sees_its_chunk_and_the_left_context_alone():
    model = _disturbed(CAUSAL)
    model.encoder.use_chunks(8, 16)
    features, lens = torch.randn(1, 200, 80), torch.tensor([200])
    before, _ = model.encode(features, lens)
    # frame t of the output is of the frames 2t and 2t+1 at 50 per second, which see feature frames 4t .. 4t+10, and
    # through the ConvNeXt, 6 more on both sides: chunk 3 is of output frames 12..15 and sees frames 48-6 .. 48+24+6
    changed = features.clone()
    changed[:, 80:] += 1
    after, _ = model.encode(changed, lens)
    torch.testing.assert_close(after[:, :16], before[:, :16])
    assert (after[:, 16] - before[:, 16]).abs().max() > 1e-3
    # with three layers, two chunks to the left each, and the convolutions' kernels, the first frames reach chunk 8
    model.encoder.use_chunks(8, -1)
    everything, _ = model.encode(features, lens)
    assert (everything[:, 40:] - before[:, 40:]).abs().max() > 1e-3


def test_chunks_that_do_not_fit_the_model_are_named():
    with pytest.raises(ValueError, match="`chunk_size` must be a multiple of .*, but is 15"):
        build_model(CAUSAL).encoder.use_chunks(15, 16)
    with pytest.raises(ValueError, match="`left_context_frames` must be a multiple of .*, but is 0"):
        build_model(CAUSAL).encoder.use_chunks(16, 0)
    with pytest.raises(ValueError, match="`chunk_size` must be -1, but is 16: .* not causal"):
        build_model(SMALL).encoder.use_chunks(16, -1)


def _training_output(model, features, lens):
    torch.manual_seed(3)
    return model.train().encode(features, lens)[0]


@pytest.mark.parametrize("config", [pytest.param(SMALL, marks=pytest.mark.sweep), CAUSAL], ids=["offline", "causal"])
def test_training_draws_from_torchs_generator_alone(config, device):
    """Equal seeds give equal outputs and gradients, with and without recomputation: runs resume bit-equal."""
    model = _disturbed(config).to(device)
    set_batch_count(model, 100)
    features, lens = torch.randn(3, 100, 80, device=device), torch.tensor([100, 40, 99], device=device)
    gradients = []
    for model.encoder.recompute_stages in (False, False, True):
        model.zero_grad()
        out = _training_output(model, features, lens)
        out.square().mean().backward()
        gradients.append(
            [parameter.grad.clone() for parameter in model.encoder.parameters() if parameter.requires_grad]
        )
    for other in gradients[1:]:
        assert all(torch.equal(one, two) for one, two in zip(gradients[0], other, strict=True))
    torch.manual_seed(4)
    assert not torch.equal(model.encode(features, lens)[0], out)


def test_gradient_reaches_every_parameter(device):
    model = _disturbed(CAUSAL).to(device).train()
    features = torch.randn(2, 100, 80, device=device)
    lens, tokens = torch.tensor([100, 90], device=device), torch.randint(1, 11, (2, 4), device=device)
    # the whole utterance as a chunk has edges, too
    model(features, lens, tokens, torch.tensor([4, 3], device=device)).sum().backward()
    unused = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert len(unused) == 4 and all(
        name.endswith("layers.0.bypass_scale") or ".1.bypass_scale" in name for name in unused
    )
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder_dim": (16, 32)},
            "`encoder_dim` must have as many numbers as `downsampling_factor`, 3, or 1, but has 2",
        ),
        ({"num_heads": (2, 0, 2)}, "`num_heads` must be at least 1, but is 0"),
        ({"encoder_dim": (16, 33, 24)}, "`encoder_dim` must be even, but is 33"),
        ({"cnn_module_kernel": (8,)}, "`cnn_module_kernel` must be odd, but is 8"),
        ({"subsampling_channels": 24}, "`subsampling_channels` must be a multiple of 16, but is 24"),
        ({"pos_dim": 7}, "`pos_dim` must be even, but is 7"),
        ({"encoder_unmasked_dim": (20,)}, "`encoder_unmasked_dim` must be at most `encoder_dim` 16, but is 20"),
        ({"causal": True, "chunk_size": (8, 6)}, "`chunk_size` must be a multiple of 4, but is 6"),
        ({"num_heads": 4}, "`num_heads` must be a tuple, but is 4"),
        ({"chunk_size": (0,)}, "`chunk_size` must be numbers in 1..10000, or -1, but is 0"),
        ({"left_context_frames": ()}, "`left_context_frames` must be numbers in 1..10000, or -1, but is empty"),
        ({"dropout": 0.5}, "`dropout` must be at least 0 and below 0.333"),
    ],
)
def test_bad_size_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL_ZIPFORMER, **change)


def test_joiner_without_projection_is_refused():
    with pytest.raises(ValueError, match="`joiner_proj` must be true"):
        ModelConfig(11, SMALL_ZIPFORMER)


def test_summary_names_a_published_size_alone():
    sizes = ZIPFORMER_SIZES["s"]
    assert sizes.summary.startswith("zipformer S, 12 layers")
    for change in ({"num_encoder_layers": (1,)}, {"encoder_dim": (192,)}, {"feedforward_dim": (512,)}):
        assert replace(sizes, **change).summary.startswith("zipformer, ")


def test_decoder_without_context_embeds_alone():
    """icefall's has no second balancer, either, which would correct the gradient of the embedding once more."""
    decoder = build_model(resized(SMALL, context_size=1)).decoder
    assert {name.partition(".")[0] for name, _ in decoder.named_modules()} == {"", "embedding", "balancer1"}


def test_narrow_subsampling_is_refused_where_programs_have_icefalls(tmp_path):
    """A model with it trains as any other."""
    config = replace(SMALL, encoder=replace(SMALL_ZIPFORMER, subsampling_channels=32, causal=True))
    model = build_model(config)
    assert model.encoder.embed.out.in_features == 32 * 19
    checkpoint = Checkpoint(model.state_dict(), config, FbankConfig(), build_token_table(["abcdefgh"], "char"))
    with pytest.raises(ValueError, match="128 `subsampling_channels`, but this model has 32"):
        save_icefall(tmp_path / "p.pt", checkpoint)
    with pytest.raises(ValueError, match="128 `subsampling_channels`, but this model has 32"):
        streaming_layout(model.encoder, config.encoder)


def test_sizes_survive_json():
    assert ModelConfig.from_sizes(json.loads(json.dumps(CAUSAL.sizes()))) == CAUSAL


# icefall's modules whose settings are attributes of others here, or have other names
_MODULES = {
    "encoder_embed.conv.2": "encoder.embed.balancer1",
    "encoder_embed.conv.5": "encoder.embed.balancer2",
    "encoder_embed.conv.8": "encoder.embed.balancer3",
    "decoder.balancer": "decoder.balancer1",
}
_SETTINGS = {
    "whitening_limit": "limit",
    "layerdrop_rate": "skip_rate",
    "ff2_skip_rate": "feed_forward_skip_rate",
    "ff3_skip_rate": "feed_forward_skip_rate",
    "pos_emb_skip_rate": "position_skip_rate",
    "dropout_p": "dropout",
}


def test_settings_of_all_modules_are_icefalls(zipformer_golden):
    """Limits, probabilities and schedules of the size M, which act in training alone."""
    text = (zipformer_golden / "train" / "train_settings.json").read_text()
    modules = dict(skeleton(zipformer_model(500, ZIPFORMER_SIZES["m"])).named_modules())
    checked = 0
    for theirs, settings in json.loads(text)["M"].items():
        kind = settings["class"]
        if theirs == "encoder_embed.dropout":
            module, settings = modules["encoder.embed"], {"dropout": settings["p"]}
        elif kind == "ActivationDropoutAndLinear":
            if not settings["dropout_p"]:
                continue
            module = modules[zipformer_name(theirs).removesuffix(".out_proj")]
        elif kind in ("ScaleGrad", "BiasNorm", "Dropout2"):
            # constants, which a golden trajectory shows
            continue
        else:
            module = modules[_MODULES.get(theirs) or zipformer_name(theirs)]
        if kind == "Whiten":
            assert module.probs == (settings["min_prob"], settings["max_prob"]), theirs
        for name, expected in settings.items():
            setting = getattr(module, _SETTINGS.get(name, name), None)
            if isinstance(expected, dict):
                assert setting.default == expected["default"], (theirs, name)
                points = [number for point in setting.points for number in point]
                assert points == pytest.approx([number for point in expected["schedule"] for number in point])
                checked += 1
            elif isinstance(setting, float | int) and name != "channel_dim":
                assert setting == expected, (theirs, name)
                checked += 1
    assert checked > 800


def test_channels_are_lost_with_their_probabilities():
    """All maskable channels, or the last half of them: 16 of 32 in the second stack, from channel 20."""
    encoder = build_model(SMALL).encoder.train()
    lost = [(mask[:, 0] == 0).float() for mask in encoder._feature_masks(torch.zeros(4000, 9, 16))]
    for share, dim, unmasked in zip(lost, (16, 32, 24), (12, 20, 16), strict=True):
        middle = (dim + unmasked) // 2
        assert not share[:, :unmasked].any()
        # the standard error is 0.005
        assert share[:, unmasked:middle].mean().item() == pytest.approx(1 / 8, abs=0.03)
        assert share[:, middle:].mean().item() == pytest.approx(1 - (7 / 8) ** 2, abs=0.03)
        assert torch.equal(share[:, unmasked], share[:, middle - 1])
    # a sequence loses the same in all stacks
    assert torch.equal(lost[0][:, -1], lost[1][:, -1])


def test_dropped_channels_are_made_up_for_and_positions_dropped():
    x, rate = torch.ones(500, 3, 40), Schedule((0, 0.2))
    set_batch_count(rate, 0)
    dropped = drop_channels(x, rate.train())
    assert dropped.mean().item() == pytest.approx(1, abs=0.02) and dropped.unique().tolist() == [0.0, 1.25]
    assert torch.equal(dropped[:, 0], dropped[:, 2])
    stack = build_model(SMALL).encoder.stacks[0].train()
    lens = torch.tensor([400])
    positions = stack._timeline(torch.zeros(1, 400, 16), lens, lens, WHOLE).positions
    assert (positions == 0).float().mean().item() == pytest.approx(0.15, abs=0.02)


def test_attention_is_the_mean_of_the_frames_seen_by_chance(monkeypatch):
    layer = build_model(SMALL).encoder.stacks[0].layers[0].train()
    monkeypatch.setattr(zipformer_layer, "chance", lambda probability: True)
    weights = torch.tensor([[[[0.7, 0.3, 0.0], [0.2, 0.8, 0.0], [0.5, 0.25, 0.25]]]])
    expected = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]])
    torch.testing.assert_close(layer._weights_of_one_head(weights), expected)
    monkeypatch.setattr(zipformer_layer, "chance", lambda probability: False)
    assert torch.equal(layer._weights_of_one_head(weights), weights[:, 0])
