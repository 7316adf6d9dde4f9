"""Features less the mean of their utterance: level and microphone go, speech stays.

Letters: N utterances, T_in feature frames, F mel bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stateless_transducer.features import SILENCE_VALUE
from stateless_transducer.ops.masks import padding_mask


def without_mean(features: Tensor, feature_lens: Tensor) -> Tensor:
    """Cepstral mean normalisation (Atal 1974), on log mel bins, over each utterance.

    Frames of digital silence say nothing about speaker and microphone, and do not count.

    Args:
        features: (N, T_in, F), log mel energies, padded with anything finite.
        feature_lens: (N,).

    Returns:
        (N, T_in, F).
    """
    # sums in float32 at least; a margin for features that were stored with loss
    exact = features if features.dtype == torch.float64 else features.float()
    is_heard = torch.amax(exact, dim=2) > SILENCE_VALUE + 0.1
    counts = (is_heard & ~padding_mask(feature_lens, exact.shape[1]))[:, :, None].to(exact.dtype)
    mean = (exact * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)
    return (exact - mean).to(features.dtype)
