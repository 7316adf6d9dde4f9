"""Causal encoders: a whole utterance, masked, and the same chunk by chunk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_sizes import SMALL_CONFORMER, SMALL_ZIPFORMER, conformer_model, zipformer_model
from torch.nn.utils.rnn import pad_sequence

from stateless_transducer.model.chunks import ChunkChoices, usual_ms
from stateless_transducer.model.config import CausalEncoderConfig, ConformerConfig, ModelConfig, ZipformerConfig
from stateless_transducer.model.encoder import join_states, split_state
from stateless_transducer.model.live import live_encoder
from stateless_transducer.model.transducer import build_model

CAUSAL = replace(SMALL_CONFORMER, causal=True, chunk_size=(8, 16, -1), left_context_frames=(16, -1))
CONFIGS = {
    "conformer": CAUSAL,
    "conformer, kernel 1": replace(CAUSAL, conv_kernel=1),
    "conformer, kernel 31": replace(CAUSAL, conv_kernel=31),
    "conformer, convolutions over past frames": replace(CAUSAL, causal_conv=True),
    "conformer, convolutions over past frames, kernel 31": replace(CAUSAL, causal_conv=True, conv_kernel=31),
    "zipformer": replace(SMALL_ZIPFORMER, causal=True),
    "zipformer, kernels 1 to 31": replace(SMALL_ZIPFORMER, causal=True, cnn_module_kernel=(1, 31, 15)),
}


def _encoder(config: CausalEncoderConfig):
    """An encoder none of whose parameters is at its initial value, where zeros would hide faults."""
    model = zipformer_model(11, config) if isinstance(config, ZipformerConfig) else ModelConfig(11, config)
    encoder = build_model(model).encoder
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.sweep if "kernel" in name else ()) for name in CONFIGS]
)
@torch.inference_mode()
def test_chunks_of_streams_of_different_ages_equal_whole_utterances(name, device):
    encoder = _encoder(CONFIGS[name]).to(device)
    # stream n begins with tick start[n]; a chunk that is wider than the left context, and the other way round
    start, num_chunks = (0, 2, 2, 7), (12, 9, 3, 4)
    for chunk, left in ((4, 4), (8, 32), (16, 16), (32, 8)):
        encoder.use_chunks(chunk, left)
        shift, frames = encoder.chunk_shift, encoder.chunk_frames
        sounds = [torch.randn(1, count * shift + encoder.look_ahead, 80, device=device) for count in num_chunks]
        states, outputs = {}, [[] for _ in sounds]
        for tick in range(12):
            live = [n for n in range(4) if start[n] <= tick < start[n] + num_chunks[n]]
            states |= {n: encoder.initial_state(1) for n in live if start[n] == tick}
            parts = [sounds[n][:, (tick - start[n]) * shift :][:, :frames] for n in live]
            out, state = encoder.encode_chunk(torch.cat(parts), join_states([states[n] for n in live]))
            states |= dict(zip(live, split_state(state), strict=True))
            for n, part in zip(live, out, strict=True):
                outputs[n].append(part)
        for sound, parts in zip(sounds, outputs, strict=True):
            whole, _ = encoder(sound, torch.tensor([sound.shape[1]], device=device))
            streamed = torch.cat(parts)
            # a Zipformer looks ahead further than a frame, so that the whole has two frames more
            assert len(streamed) == len(parts) * shift // 4 and len(streamed) <= whole.shape[1] <= len(streamed) + 2
            # rounding of float32 through the layers; outputs are of order 1
            torch.testing.assert_close(streamed, whole[0, : len(streamed)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_state_is_a_value(name):
    encoder = _encoder(CONFIGS[name])
    encoder.use_chunks(8, 16)
    features = torch.randn(2, encoder.chunk_frames, 80)
    _, state = encoder.encode_chunk(features, encoder.initial_state(2))
    copy = join_states([state])
    outputs = [encoder.encode_chunk(features.flip(0), same)[0] for same in (state, state, copy)]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_live_sound_has_chunks_that_the_model_is_trained_on():
    assert usual_ms(ChunkChoices((16, 32, 64, -1), (64, 128, 256, -1))) == (320, 2560)
    assert usual_ms(ChunkChoices((8,), (64,))) == (160, 1280)
    assert usual_ms(ChunkChoices((-1,), (-1,))) == (320, 2560)
    model = build_model(conformer_model(11, num_layers=1, causal=True, chunk_size=(8,), left_context_frames=(16,)))
    assert live_encoder(model, chunk_ms=None, left_ms=None).live_chunks() == (8, 16)
    assert live_encoder(model, chunk_ms=320, left_ms=None).live_chunks() == (16, 16)


def test_live_sound_needs_limits():
    encoder = _encoder(CAUSAL)
    for chunks, message in (((-1, 16), "`chunk_size`.*-1"), ((16, -1), "`left_context_frames`.*-1")):
        encoder.use_chunks(*chunks)
        with pytest.raises(ValueError, match=message):
            encoder.initial_state(1)


@pytest.mark.parametrize("chunks", [(-1, -1), (4, 8), (16, -1)], ids=str)
def test_utterance_alone_equals_utterance_in_a_padded_batch(chunks, device):
    encoder = _encoder(CAUSAL).to(device)
    encoder.use_chunks(*chunks)
    # an utterance of a frame, and one that is too short for it, beside chunks of padding
    lens = (7, 17, 6, 200, 61)
    utterances = [torch.randn(length, 80, device=device) for length in lens]
    # 1e4 behind the end: nothing of it may come through
    batch = pad_sequence(utterances, batch_first=True, padding_value=1e4)
    together, together_lens = encoder(batch, torch.tensor(lens, device=device))
    assert together_lens.tolist() == [1, 3, 0, 49, 14] and together.isfinite().all()
    for n in (0, 1, 3, 4):
        alone, _ = encoder(utterances[n][None], torch.tensor([lens[n]], device=device))
        # rounding of float32 through two layers; outputs are of order 1
        torch.testing.assert_close(together[n, : together_lens[n]], alone[0], rtol=0, atol=1e-5)


def test_frame_sees_its_chunk_and_the_left_context_alone():
    encoder = _encoder(replace(CAUSAL, num_layers=1, conv_kernel=5))
    encoder.use_chunks(8, 8)
    features, lens = torch.randn(1, 163, 80), torch.tensor([163])
    before, _ = encoder(features, lens)
    changed = features.clone()
    changed[:, 80] += 1
    after, _ = encoder(changed, lens)
    # feature frame 80 is of output frames 19 (its last) and 20; with a layer, chunks of four frames that see the one
    # before them, and a convolution over five frames, two of them past, frames 16..27 see it, and 28 and 29 see those
    is_equal = (after == before).all(2)[0]
    assert is_equal[:16].all() and not is_equal[16:30].any() and is_equal[30:].all()


def test_training_draws_chunks_from_torchs_generator_alone():
    """Equal seeds give equal gradients, with and without recomputation: runs resume bit-equal."""
    encoder = _encoder(replace(CAUSAL, dropout=0.0)).train()
    features, lens = torch.randn(2, 100, 80), torch.tensor([100, 40])
    gradients = []
    for encoder.recompute_stages in (False, True):
        for seed in range(12):
            encoder.zero_grad()
            torch.manual_seed(seed)
            encoder(features, lens)[0].square().mean().backward()
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in encoder.parameters()]))
    assert all(map(torch.equal, gradients[:12], gradients[12:]))
    # without dropout, the chunks alone are drawn: of 8 or 16 frames that see 16 or all, or the whole
    assert len({float(gradient.abs().sum()) for gradient in gradients}) == 5
    encoder.draws_chunks = False
    torch.testing.assert_close(encoder(features, lens)[0], encoder.eval()(features, lens)[0])


def test_model_from_before_the_choice_has_causal_convolutions():
    sizes = ModelConfig(11, CAUSAL, feature_norm="global").sizes()
    assert sizes.pop("causal_conv") is False
    encoder = ModelConfig.from_sizes(sizes).encoder
    assert isinstance(encoder, ConformerConfig) and encoder.causal_conv
    offline = conformer_model(11).sizes()
    # a resumed run compares the sizes with those of its options
    assert offline.pop("causal_conv") is False and ModelConfig.from_sizes(offline) == conformer_model(11)


def test_causal_model_has_the_parameters_of_an_offline_one():
    offline, causal = (build_model(conformer_model(11, num_layers=1, causal=causal)) for causal in (False, True))
    assert {name: value.shape for name, value in offline.state_dict().items()} == {
        name: value.shape for name, value in causal.state_dict().items()
    }


@pytest.mark.parametrize("norm", ["level", "mean"])
def test_normalization_of_whole_utterances_is_refused(norm):
    with pytest.raises(
        ValueError, match=f"`feature_norm={norm}` .*causal.*`feature_norm` to global.*`gain_range_db=10`"
    ):
        ModelConfig(11, CAUSAL, feature_norm=norm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": (8, 7)}, "`chunk_size` must be a multiple of 2, but is 7"),
        ({"chunk_size": (0,)}, "`chunk_size` must be .* in 1..10000, or -1, but is 0"),
        ({"left_context_frames": ()}, "`left_context_frames` must be .*, but is empty"),
    ],
)
def test_bad_chunks_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CAUSAL, **change)
