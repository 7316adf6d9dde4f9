from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_transducer import SMALL

from stateless_transducer.features import PADDING_VALUE, SILENCE_VALUE
from stateless_transducer.model.feature_norm import (
    RANGE,
    SMALLEST_STD,
    FeatureNormalizer,
    without_level,
    without_mean,
)
from stateless_transducer.model.transducer import build_model


def test_mean_of_each_bin_is_gone_wherever_the_utterance_ends():
    features, lens = torch.randn(3, 50, 80) * 3 - 7, torch.tensor([50, 20, 1])
    found = without_mean(features, lens)
    for n, count in enumerate(lens.tolist()):
        torch.testing.assert_close(found[n, :count].mean(0), torch.zeros(80), rtol=0, atol=1e-5)
        torch.testing.assert_close(found[n, :count], features[n, :count] - features[n, :count].mean(0))


@pytest.mark.parametrize(
    ("norm", "is_same_louder", "is_same_elsewhere"),
    [("none", False, False), ("level", True, False), ("mean", True, True)],
)
def test_level_and_microphone_make_no_difference_to_the_model(norm, is_same_louder, is_same_elsewhere):
    features, lens = torch.randn(2, 60, 80), torch.tensor([60, 31])
    louder, elsewhere = features + 4, features + torch.randn(80) * 5
    model = build_model(replace(SMALL, feature_norm=norm)).eval()
    with torch.inference_mode():
        plain, *others = (model.encode(given, lens)[0] for given in (features, louder, elsewhere))
    same = [torch.allclose(plain[0], other[0], atol=1e-3) for other in others]
    assert same == [is_same_louder, is_same_elsewhere]


@pytest.mark.parametrize("gain", [-3.0, 5.0, 90.0])
def test_mean_energy_is_one_whatever_the_level(gain):
    # 90: beyond what exp() holds in float32
    features, lens = torch.randn(3, 50, 80) * 3, torch.tensor([50, 20, 1])
    found = without_level(features + gain, lens)
    for n, count in enumerate(lens.tolist()):
        level = features[n, :count].double().exp().mean().log()
        torch.testing.assert_close(found[n, :count], (features[n, :count] - level).clamp(min=-RANGE).float())
        assert (found[n, count:] == -RANGE).all()


def test_what_is_far_below_the_level_is_silence_and_silence_does_not_count():
    silence = torch.full((1, 25, 80), SILENCE_VALUE)
    speech, quiet = torch.randn(1, 30, 80), torch.full((1, 5, 80), -14.0)
    found = without_level(torch.cat([silence, speech, quiet], dim=1), torch.tensor([60]))
    assert (found[:, :25] == -RANGE).all() and (found[:, 55:] == -RANGE).all()
    # the quiet frames have no energy to speak of, and yet are frames
    torch.testing.assert_close(found[:, 25:55], without_level(speech, torch.tensor([30])) + math.log(35 / 30))
    # a soft voice's silence is as deep
    found = without_level(torch.cat([silence, speech - 11], dim=1), torch.tensor([55]))
    assert (found[:, :25] == -RANGE).all()


def test_digital_silence_does_not_count():
    speech = torch.randn(1, 30, 80) - 5
    alone = without_mean(speech, torch.tensor([30]))
    silence = torch.full((1, 25, 80), SILENCE_VALUE)
    among = without_mean(torch.cat([silence, speech, silence], dim=1), torch.tensor([80]))
    torch.testing.assert_close(among[:, 25:55], alone)


@pytest.mark.parametrize("length", [0, 4])
def test_nothing_but_silence_stays_silence(length):
    features = torch.cat([torch.full((1, length, 80), SILENCE_VALUE), torch.full((1, 3, 80), PADDING_VALUE)], dim=1)
    torch.testing.assert_close(without_mean(features, torch.tensor([length])), features)
    assert (without_level(features, torch.tensor([length])) == -RANGE).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sums_are_exact_enough_in_any_precision(dtype):
    # 30000 frames of -8 are beyond what float16 adds up
    found = without_mean(torch.full((1, 30000, 80), -8.0, dtype=dtype), torch.tensor([30000]))
    assert found.dtype == dtype and found.abs().max() < 1e-3
    found = without_level(torch.full((1, 30000, 80), -8.0, dtype=dtype), torch.tensor([30000]))
    assert found.dtype == dtype and found.abs().max() < 1e-3


def test_statistics_are_those_of_what_is_heard():
    generator = torch.Generator().manual_seed(1)
    spread = torch.linspace(0.5, 4, 80)
    features = torch.randn(3, 50, 80, generator=generator) * spread - torch.linspace(2, 9, 80)
    features[0, 40:] = SILENCE_VALUE
    lens = torch.tensor([50, 20, 35])
    normalizer = FeatureNormalizer("global", 80)
    normalizer.fit([(features[:2], lens[:2]), (features[2:], lens[2:])])
    heard = torch.cat([features[0, :40], features[1, :20], features[2, :35]])
    torch.testing.assert_close(normalizer.mean, heard.mean(0))
    std = heard.std(0, correction=0)
    assert (std < SMALLEST_STD).any() and (std > SMALLEST_STD).any()
    torch.testing.assert_close(normalizer.std, std.clamp(min=SMALLEST_STD))
    torch.testing.assert_close(normalizer(features), (features - normalizer.mean) / normalizer.std)


def test_normalization_by_the_utterance_refuses_live_sound():
    with pytest.raises(ValueError, match="`feature_norm=level`"):
        FeatureNormalizer("level", 80)(torch.randn(1, 32, 80))
