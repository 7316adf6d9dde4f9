"""SpecAugment (Park et al., arXiv 1904.08779): a time warp, masks over mel bins and masks over frames.

All numbers are distributed as those of lhotse's `SpecAugment`, which icefall's recipes use. Unlike lhotse's, they come
from the generator that is passed in, and an utterance too short for a mask gets none.

Letters: T_in feature frames, F mel bins.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from stateless_transducer.data.config import SpecAugmentConfig


def warp_and_mask(features: Tensor, config: SpecAugmentConfig, generator: np.random.Generator) -> Tensor:
    """Return features of the same shape, (T_in, F), warped and masked; the argument is not changed.

    Whether they are warped and whether they are masked are two draws with ``spec_aug_probability`` each.
    """
    if generator.random() < config.spec_aug_probability:
        features = time_warp(features, config.spec_aug_time_warp_factor, generator)
    if generator.random() < config.spec_aug_probability:
        features = mask(features, config, generator)
    return features


def time_warp(features: Tensor, factor: int, generator: np.random.Generator) -> Tensor:
    """Move a random frame by up to ``factor`` frames, and stretch what is before and after it (bicubic).

    Utterances of up to ``2 * factor + 1`` frames are returned as they are, and so are all with a factor below 1.
    """
    T_in = len(features)
    if factor < 1 or T_in <= 2 * factor + 1:
        return features
    source = int(generator.integers(factor + 1, T_in - factor))
    target = int(generator.integers(source - factor, source + factor + 1))
    if source == target:
        return features
    return torch.cat([_stretch(features[:source], target), _stretch(features[source:], T_in - target)])


def mask(features: Tensor, config: SpecAugmentConfig, generator: np.random.Generator) -> Tensor:
    """Return a copy of features (T_in, F) in which random bins and random frames hold the mean of all features.

    Masks may overlap. The number and the widths of the frame masks are limited so that together they cover at most
    ``max_frames_mask_fraction`` of the utterance.
    """
    T_in, F = features.shape
    mean, features = features.mean(), features.clone()
    bins_below = min(config.features_mask_size, F + 1)
    for start, end in _draw_masks(F, config.num_feature_masks, bins_below, generator):
        features[:, start:end] = mean
    most_frames = config.max_frames_mask_fraction * T_in
    num_frame_masks = min(config.num_frame_masks, math.ceil(most_frames / config.frames_mask_size))
    frames_below = min(config.frames_mask_size, int(most_frames // max(1, num_frame_masks)))
    for start, end in _draw_masks(T_in, num_frame_masks, frames_below, generator):
        features[start:end] = mean
    return features


def _draw_masks(length: int, count: int, width_below: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Begin and end of ``count`` masks: widths from 0 to ``width_below - 1``, anywhere within ``length``."""
    widths = generator.integers(0, max(1, width_below), count)
    starts = (generator.random(count) * (length - widths)).astype(np.int64)
    return list(zip(starts.tolist(), (starts + widths).tolist(), strict=True))


def _stretch(features: Tensor, num_frames: int) -> Tensor:
    """(T_in, F) -> (num_frames, F)."""
    size = (num_frames, features.shape[1])
    return torch.nn.functional.interpolate(features[None, None], size, mode="bicubic", align_corners=False)[0, 0]
