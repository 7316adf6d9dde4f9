"""Features less what the room and the microphone make of a whole utterance: its level, or the mean of each bin.

Letters: N utterances, T_in feature frames, F mel bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stateless_transducer.features import SILENCE_VALUE
from stateless_transducer.model.config import FeatureNorm
from stateless_transducer.ops.masks import padding_mask

RANGE = 10.0
"""How far below the level of its utterance an energy is still told from silence: in units of the features, 43 dB."""


def normalized(features: Tensor, feature_lens: Tensor, norm: FeatureNorm) -> Tensor:
    """(N, T_in, F) and (N,) -> (N, T_in, F)."""
    if norm == "mean":
        return without_mean(features, feature_lens)
    if norm == "level":
        return without_level(features, feature_lens)
    return features


def without_mean(features: Tensor, feature_lens: Tensor) -> Tensor:
    """Cepstral mean normalization (Atal 1974), on log mel bins, over each utterance.

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
    """Loud and soft made alike: the log of the mean energy is taken away, one number an utterance.

    What is more than ``RANGE`` below it is silence, whether a quiet room or no signal at all.

    Args:
        features: (N, T_in, F), log mel energies, padded with anything finite.
        feature_lens: (N,).

    Returns:
        (N, T_in, F), nothing below ``-RANGE``.
    """
    exact, is_heard = _exact(features), _is_heard(features, feature_lens)
    total = exact.masked_fill(~is_heard, -torch.inf).logsumexp((1, 2), keepdim=True)
    # as a float: torch's exporter gives ONNX a logarithm of integers, which it does not have
    number = is_heard.sum(1, keepdim=True).to(exact.dtype) * exact.shape[2]
    level = total - torch.log(number)
    return torch.where(is_heard, exact - level, -RANGE).clamp(min=-RANGE).to(features.dtype)


def _exact(features: Tensor) -> Tensor:
    """Sums in float32 at least."""
    return features if features.dtype == torch.float64 else features.float()


def _is_heard(features: Tensor, feature_lens: Tensor) -> Tensor:
    """(N, T_in, 1), bool: frames that count. Digital silence says nothing about speaker, level and microphone."""
    # a margin for features that were stored with loss
    is_heard = torch.amax(features, dim=2) > SILENCE_VALUE + 0.1
    return (is_heard & ~padding_mask(feature_lens, features.shape[1]))[:, :, None]
