"""Normalization of the features of an utterance: subtract its level, or the mean of each bin.

Letters: N utterances, T_in feature frames, F mel bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stateless_transducer.features import SILENCE_VALUE
from stateless_transducer.model.config import FeatureNorm
from stateless_transducer.ops.masks import padding_mask

RANGE = 10.0
"""Range below the level of an utterance, outside of which an energy counts as silence; in feature units, 43 dB."""


def normalized(features: Tensor, feature_lens: Tensor, norm: FeatureNorm) -> Tensor:
    """Normalize features (N, T_in, F) of lengths (N,) in the chosen way."""
    if norm == "mean":
        return without_mean(features, feature_lens)
    if norm == "level":
        return without_level(features, feature_lens)
    return features


def without_mean(features: Tensor, feature_lens: Tensor) -> Tensor:
    """Subtract the mean of each bin: cepstral mean normalization (Atal 1974), on log mel bins, over each utterance.

    Args:
        features: (N, T_in, F), log mel energies, padded with anything finite.
        feature_lens: (N,).

    Returns:
        (N, T_in, F).
    """
    exact, is_heard = _exact(features), _is_heard(features, feature_lens)
    mean = (exact * is_heard).sum(1, keepdim=True) / is_heard.sum(1, keepdim=True).clamp(min=1)
    return (exact - mean).to(features.dtype)


def without_level(features: Tensor, feature_lens: Tensor) -> Tensor:
    """Subtract the level, that is, the log of the mean energy: one number per utterance.

    Energies more than ``RANGE`` below it count as silence, whether they are a quiet room or digital silence.

    Args:
        features: (N, T_in, F), log mel energies, padded with anything finite.
        feature_lens: (N,).

    Returns:
        (N, T_in, F), nothing below ``-RANGE``.
    """
    exact, is_heard = _exact(features), _is_heard(features, feature_lens)
    total = exact.masked_fill(~is_heard, -torch.inf).logsumexp((1, 2), keepdim=True)
    # a float: torch's exporter would write a logarithm of integers, which ONNX lacks
    number = is_heard.sum(1, keepdim=True).to(exact.dtype) * exact.shape[2]
    level = total - torch.log(number)
    return torch.where(is_heard, exact - level, -RANGE).clamp(min=-RANGE).to(features.dtype)


def _exact(features: Tensor) -> Tensor:
    """Convert features to float32 at least, for sums."""
    return features if features.dtype == torch.float64 else features.float()


def _is_heard(features: Tensor, feature_lens: Tensor) -> Tensor:
    """Return a mask (N, T_in, 1) of the frames that count: neither padding nor digital silence."""
    # the margin is for features that were stored with lossy compression
    is_heard = torch.amax(features, dim=2) > SILENCE_VALUE + 0.1
    return (is_heard & ~padding_mask(feature_lens, features.shape[1]))[:, :, None]
