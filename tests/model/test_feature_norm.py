from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_transducer import SMALL

from stateless_transducer.features import PADDING_VALUE, SILENCE_VALUE
from stateless_transducer.model.feature_norm import without_mean
from stateless_transducer.model.transducer import build_model


def test_mean_of_each_bin_is_gone_wherever_the_utterance_ends():
    features, lens = torch.randn(3, 50, 80) * 3 - 7, torch.tensor([50, 20, 1])
    found = without_mean(features, lens)
    for n, count in enumerate(lens.tolist()):
        torch.testing.assert_close(found[n, :count].mean(0), torch.zeros(80), rtol=0, atol=1e-5)
        torch.testing.assert_close(found[n, :count], features[n, :count] - features[n, :count].mean(0))


def test_level_and_microphone_make_no_difference_to_the_model():
    features, lens, microphone = torch.randn(2, 60, 80), torch.tensor([60, 31]), torch.randn(80) * 5
    for norm, is_same in (("mean", True), ("none", False)):
        model = build_model(replace(SMALL, feature_norm=norm)).eval()
        with torch.inference_mode():
            plain, louder = (model.encode(given, lens)[0] for given in (features, features + microphone))
        assert torch.allclose(plain[0], louder[0], atol=1e-3) == is_same


def test_digital_silence_does_not_count():
    speech = torch.randn(1, 30, 80) - 5
    alone = without_mean(speech, torch.tensor([30]))
    silence = torch.full((1, 25, 80), SILENCE_VALUE)
    among = without_mean(torch.cat([silence, speech, silence], dim=1), torch.tensor([80]))
    torch.testing.assert_close(among[:, 25:55], alone)


@pytest.mark.parametrize("length", [0, 4])
def test_nothing_but_silence_stays_as_it_is(length):
    features = torch.cat([torch.full((1, length, 80), SILENCE_VALUE), torch.full((1, 3, 80), PADDING_VALUE)], dim=1)
    torch.testing.assert_close(without_mean(features, torch.tensor([length])), features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sums_are_exact_enough_in_any_precision(dtype):
    # 30000 frames of -8 are beyond what float16 adds up
    found = without_mean(torch.full((1, 30000, 80), -8.0, dtype=dtype), torch.tensor([30000]))
    assert found.dtype == dtype and found.abs().max() < 1e-3
