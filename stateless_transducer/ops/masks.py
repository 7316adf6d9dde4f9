"""Masks of padded batches.

Letters: N utterances, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor


def padding_mask(lens: Tensor, max_len: int) -> Tensor:
    """Mask of the positions after the end of their utterance.

    Args:
        lens: (N,), integer.
        max_len: T.

    Returns:
        (N, T), bool, on the device of ``lens``.
    """
    return torch.arange(max_len, device=lens.device) >= lens[:, None]
