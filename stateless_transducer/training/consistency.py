"""Consistency of the CTC outputs for two differently masked copies of a batch (CR-CTC, arXiv 2410.05101).

Letters: N utterances, T_in feature frames, F mel bins, T encoder frames, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stateless_transducer.data.batches import Batch
from stateless_transducer.data.config import SpecAugmentConfig
from stateless_transducer.data.spec_augment import mask
from stateless_transducer.ops.masks import padding_mask

WARM_STEP = 2000
"""Updates over which the weight of the consistency rises from 0."""
_MASK_RATIO = 2.5
"""Frame masks of a copy relative to those of SpecAugment alone, in number and in share of the frames."""


def two_copies(batch: Batch, config: SpecAugmentConfig) -> Batch:
    """Return a batch of 2N utterances: all of the batch, and all of them once more, with masks of their own.

    The masks are drawn from torch's generator, which training seeds for each update.
    """
    generator = np.random.default_rng(int(torch.randint(2**62, (), device="cpu")))
    config = replace(
        config,
        num_frame_masks=int(config.num_frame_masks * _MASK_RATIO),
        max_frames_mask_fraction=min(1.0, config.max_frames_mask_fraction * _MASK_RATIO),
    )
    features = torch.cat([batch.features, batch.features])
    feature_lens = torch.cat([batch.feature_lens, batch.feature_lens])
    for utterance, length in zip(features, feature_lens.tolist(), strict=True):
        if generator.random() < config.spec_aug_probability:
            utterance[:length] = mask(utterance[:length], config, generator)
    return replace(
        batch,
        features=features,
        feature_lens=feature_lens,
        tokens=torch.cat([batch.tokens, batch.tokens]),
        token_lens=torch.cat([batch.token_lens, batch.token_lens]),
        ids=batch.ids * 2,
        texts=batch.texts * 2,
    )


def consistency(log_probs: Tensor, lens: Tensor) -> Tensor:
    """Compute the divergence of each copy from the other one, ``sum_t sum_v q (log q - log p)``, (2N,).

    Args:
        log_probs: (2N, T, V), log p of both copies; the other copy's q is detached.
        lens: (2N,).
    """
    first, second = log_probs.chunk(2)
    target = torch.cat([second, first]).detach()
    divergence = (target.exp() * (target - log_probs)).sum(-1)  # (2N, T)
    return divergence.masked_fill(padding_mask(lens.to(divergence.device), divergence.shape[1]), 0.0).sum(1)
