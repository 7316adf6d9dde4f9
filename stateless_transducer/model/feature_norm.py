"""Normalization of features: by the level of the utterance, by its mean, or by statistics of the training data.

Letters: N utterances, T_in feature frames, F mel bins.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stateless_transducer.features import SILENCE_VALUE
from stateless_transducer.model.config import FeatureNorm
from stateless_transducer.ops.masks import padding_mask

RANGE = 10.0
"""Range below the level of an utterance, outside of which an energy counts as silence; in feature units, 43 dB."""


SMALLEST_STD = 1.0
"""Smallest standard deviation of a bin; in feature units, 4.3 dB. Bins without sound in training would be amplified."""


class FeatureNormalizer(nn.Module):
    """Normalization of the features of a model, in one of the ways of `FeatureNorm`.

    That by the training data ("global"; cepstral mean and variance normalization with fixed statistics) keeps
    them as buffers: 0 and 1 until `fit` is called or weights are loaded.

    Args:
        norm: the way.
        num_bins: F.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, norm: FeatureNorm, num_bins: int) -> None:
        super().__init__()
        self.norm: FeatureNorm = norm
        if norm == "global":
            self.register_buffer("mean", torch.zeros(num_bins))
            self.register_buffer("std", torch.ones(num_bins))

    def forward(self, features: Tensor, feature_lens: Tensor | None = None) -> Tensor:
        """Normalize features (N, T_in, F) of lengths (N,); None: chunks of live sound, which have no end."""
        if self.norm == "global":
            return ((features - self.mean) / self.std).to(features.dtype)
        if self.norm == "none":
            return features
        if feature_lens is None:
            raise ValueError(f"`feature_norm={self.norm}` needs whole utterances.")
        return (without_mean if self.norm == "mean" else without_level)(features, feature_lens)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take mean and standard deviation of each bin from features (N, T_in, F) of lengths (N,).

        Digital silence does not count, nor does padding. A deviation is at least `SMALLEST_STD`.
        """
        total = torch.zeros(3, len(self.mean), dtype=torch.float64)
        for features, lens in batches:
            heard = features[_is_heard(features, lens)[:, :, 0]].double()
            total += torch.stack([torch.ones_like(heard), heard, heard.square()]).sum(1)
        number, mean, square = total[0].clamp(min=1), total[1], total[2]
        mean = mean / number
        self.mean.copy_(mean)
        self.std.copy_((square / number - mean.square()).clamp(min=SMALLEST_STD**2).sqrt())


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
