"""SpecAugment is held to lhotse's, which draws from global generators."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from lhotse.dataset import SpecAugment
from lhotse.dataset.signal_transforms import time_warp as lhotse_time_warp

from stateless_transducer.data.config import SpecAugmentConfig
from stateless_transducer.data.spec_augment import mask, time_warp, warp_and_mask

_DRAWS = 2000


def _features(num_frames, num_bins=80):
    return torch.randn(num_frames, num_bins, generator=torch.Generator().manual_seed(num_frames)) - 5


def _seed_globals():
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)


def _lhotse(config):
    """Return lhotse's transform of one matrix."""
    transform = SpecAugment(
        time_warp_factor=config.spec_aug_time_warp_factor,
        num_feature_masks=config.num_feature_masks,
        features_mask_size=config.features_mask_size,
        num_frame_masks=config.num_frame_masks,
        frames_mask_size=config.frames_mask_size,
        max_frames_mask_fraction=config.max_frames_mask_fraction,
        p=config.spec_aug_probability,
    )
    return lambda features: transform(features[None], torch.tensor([[0, 0, len(features)]]))[0]


def _ours(config):
    generator = np.random.default_rng(7)
    return lambda features: warp_and_mask(features, config, generator)


def _runs(is_masked):
    """Lengths of the runs of True."""
    edges = np.diff(np.concatenate([[0], is_masked.astype(int), [0]])).nonzero()[0]
    return edges[1::2] - edges[::2]


def _mask_figures(transform, features):
    """For each draw: numbers, longest runs, shares and first places of masked frames and bins."""
    rows = []
    for _ in range(_DRAWS):
        is_masked = (transform(features) != features).numpy()
        figures = []
        for masked in (is_masked.all(1), is_masked.all(0)):
            runs = _runs(masked)
            figures += [len(runs), max(runs, default=0), masked.mean(), masked.argmax()]
        rows.append(figures)
    return np.array(rows)


def _assert_same_distribution(ours, lhotses):
    """Compare two samples: Kolmogorov-Smirnov at 0.1 % (conservative for whole numbers), and the spread."""
    values = np.union1d(ours, lhotses)
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (ours, lhotses)]
    assert abs(shares[0] - shares[1]).max() < 1.95 * (1 / len(ours) + 1 / len(lhotses)) ** 0.5
    assert ours.std() == pytest.approx(lhotses.std(), rel=0.1, abs=1e-9)


@pytest.mark.parametrize(
    ("num_frames", "numbers"),
    [
        pytest.param(500, {}, marks=pytest.mark.sweep),
        # several masks, whose widths the fraction limits
        (600, {"frames_mask_size": 50, "max_frames_mask_fraction": 0.2}),
        pytest.param(
            300,
            {"num_frame_masks": 4, "frames_mask_size": 10, "num_feature_masks": 3, "features_mask_size": 9},
            marks=pytest.mark.sweep,
        ),
        pytest.param(200, {"num_frame_masks": 1, "num_feature_masks": 1}, marks=pytest.mark.sweep),
        pytest.param(60, {"spec_aug_probability": 0.5}, marks=pytest.mark.sweep),
    ],
)
def test_masks_are_distributed_as_lhotses(num_frames, numbers):
    config = SpecAugmentConfig(**{"spec_aug_time_warp_factor": 0, "spec_aug_probability": 1.0, **numbers})
    features = _features(num_frames, num_bins=40)
    _seed_globals()
    lhotses = _mask_figures(_lhotse(config), features)
    ours = _mask_figures(_ours(config), features)
    for own_figure, lhotse_figure in zip(ours.T, lhotses.T, strict=True):
        _assert_same_distribution(own_figure, lhotse_figure)
    assert ours[:, 2].max() <= config.max_frames_mask_fraction


@pytest.mark.sweep
@pytest.mark.parametrize("factor", [5, 80])
def test_warp_and_its_probability_are_distributed_as_lhotses(factor):
    # masks of less than one frame are none
    config = SpecAugmentConfig(factor, num_feature_masks=0, frames_mask_size=1, spec_aug_probability=0.8)
    # frame t has the value t
    ramp = torch.arange(300.0)[:, None].expand(-1, 2)
    _seed_globals()
    figures = []
    for transform in (_lhotse(config), _ours(config)):
        moved = torch.stack([(transform(ramp) - ramp)[:, 0] for _ in range(_DRAWS)]).numpy()
        places = abs(moved).argmax(1)
        figures.append((moved[np.arange(_DRAWS), places], places))
    for ours, lhotses in zip(figures[1], figures[0], strict=True):
        _assert_same_distribution(ours, lhotses)
    assert factor - 2 < abs(figures[1][0]).max() <= factor + 1


@pytest.mark.parametrize("num_frames", [1, 10, 11, 12, 50, 300])
def test_warp_of_the_same_draws_is_lhotses(num_frames, monkeypatch):
    ours, lhotses = np.random.default_rng(3), np.random.default_rng(3)
    monkeypatch.setattr(np.random, "randint", lhotses.integers)
    features = _features(num_frames)
    for _ in range(20):
        torch.testing.assert_close(time_warp(features, 5, ours), lhotse_time_warp(features, 5), rtol=0, atol=1e-6)


def test_warp_and_mask_are_drawn_apart():
    config, features = SpecAugmentConfig(spec_aug_probability=0.5, features_mask_size=80), _features(300)
    transform, kinds = _ours(config), {(False, False): 0, (False, True): 0, (True, False): 0, (True, True): 0}
    for _ in range(100):
        changed = transform(features)
        # masked cells have one value; warped ones have values that were not there
        values, counts = changed.unique(return_counts=True)
        kinds[bool((~torch.isin(values[counts == 1], features)).any()), bool((counts > 80).any())] += 1
    assert min(kinds.values()) > 12


@pytest.mark.parametrize("num_frames", [*range(1, 30), 160, 161, 162])
def test_short_utterances_keep_their_length_and_limits(num_frames):
    config, features = SpecAugmentConfig(spec_aug_probability=1.0), _features(num_frames)
    transform = _ours(config)
    for _ in range(50):
        changed = transform(features)
        assert changed.shape == features.shape and changed.dtype == torch.float32 and changed.isfinite().all()
        if num_frames <= 161:
            assert (changed != features).all(1).float().mean() <= 0.15, "not warped, so what differs is masked"


def test_every_mask_holds_the_mean_of_the_features():
    config, features = SpecAugmentConfig(features_mask_size=20), _features(400)
    before, generator = features.clone(), np.random.default_rng(1)
    for _ in range(50):
        changed = mask(features, config, generator)
        is_masked = changed != features
        assert (changed[is_masked] == features.mean()).all()
        assert torch.equal(is_masked, is_masked.all(1)[:, None] | is_masked.all(0))
    assert torch.equal(features, before)


def test_masks_of_zero_number_or_wider_than_the_features_are_none_or_all():
    features, generator = _features(100, num_bins=4), np.random.default_rng(1)
    for numbers in ({"num_frame_masks": 0}, {"max_frames_mask_fraction": 0.0}, {"max_frames_mask_fraction": 0.01}):
        none = SpecAugmentConfig(num_feature_masks=0, **numbers)
        assert torch.equal(mask(features, none, generator), features)
    wide = SpecAugmentConfig(num_feature_masks=1, features_mask_size=99, num_frame_masks=0)
    widths = {int((mask(features, wide, generator) != features).all(0).sum()) for _ in range(200)}
    assert widths == {0, 1, 2, 3, 4}


def test_draws_follow_from_the_generator_alone():
    config, features = SpecAugmentConfig(spec_aug_probability=1.0), _features(400)

    def draw(seed):
        random.seed(seed)
        torch.rand(seed)
        return warp_and_mask(features, config, np.random.default_rng(seed))

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
