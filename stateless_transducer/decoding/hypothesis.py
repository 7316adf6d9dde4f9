"""What a search finds, and how findings are ranked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Hypothesis:
    """A sequence of tokens, when each was said, and how sure the model was of it."""

    tokens: tuple[int, ...]
    """Ids, without blanks."""
    frames: tuple[int, ...]
    """Encoder frame on which each token was emitted."""
    log_probs: tuple[float, ...]
    """Log-probability of each token where it was emitted."""
    score: float = 0.0
    """Log-probability of the whole, as the search that found it counts; see there."""


def rank(scores: ArrayLike, num_tokens: ArrayLike, context_size: int, length_norm: float) -> np.ndarray:
    """``score / (number of tokens + context_size) ** length_norm``: the higher, the better.

    With 1, as icefall does, hypotheses compete by log-probability per token, start blanks counted; with 0 by the whole
    log-probability, which favours short ones.
    """
    return np.asarray(scores) / (np.asarray(num_tokens) + context_size) ** float(length_norm)
