"""Lengths and masks, and the one formula for the number of encoder frames. Torch is needed for masks alone.

Letters: N utterances, T frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Lens = TypeVar("Lens", "Tensor", np.ndarray)

MIN_FEATURE_FRAMES = 7
"""Fewest feature frames that give one encoder frame."""


SUBSAMPLING = 4
"""Feature frames from one encoder frame to the next."""


def subsampled_lens(feature_lens: Lens) -> Lens:
    """Number of encoder frames for each number of feature frames.

    Two convolutions of kernel 3 and stride 2 without padding: ``(((T_in - 1) >> 1) - 1) >> 1``,
    and 0 for anything too short for both.

    Args:
        feature_lens: (N,), integer.
    """
    return ((((feature_lens - 1) >> 1) - 1) >> 1).clip(0)


def padding_mask(lens: Tensor, max_len: int) -> Tensor:
    """True where a position lies behind the end of its utterance.

    Args:
        lens: (N,), integer.
        max_len: T.

    Returns:
        (N, T), bool, on the device of ``lens``.
    """
    import torch

    return torch.arange(max_len, device=lens.device) >= lens[:, None]
