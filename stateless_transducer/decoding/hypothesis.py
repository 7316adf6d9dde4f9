# pyright: strict
"""What a search finds, and how findings are told apart and ranked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stateless_transducer.decoding.arrays import Array

MAX_EXPANSIONS = 32
"""Of hypotheses on one frame of Graves' beam search, times the beam size: a model that has learnt nothing would say
symbols without end."""

_MULTIPLIER, _INCREMENT = 6364136223846793005, 1442695040888963407
"""Those of Knuth's 64-bit generator."""


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


LOST = Hypothesis((), (), (), math.nan)
"""What is found where the model gives no numbers."""


def rank(scores: ArrayLike, num_tokens: ArrayLike, context_size: int, length_norm: float) -> np.ndarray:
    """``score / (number of tokens + context_size) ** length_norm``: the higher, the better.

    With 1, as icefall does, hypotheses compete by log-probability per token, start blanks counted; with 0 by the whole
    log-probability, which favors short ones.
    """
    return np.asarray(scores) / (np.asarray(num_tokens) + context_size) ** float(length_norm)


def extended_hash(hashes: Array, tokens: Array) -> Array:
    """Hash, int64, of each token sequence and one token more, from that of the sequence; 0 is that of nothing."""
    return hashes * _MULTIPLIER + (tokens + 1) * _INCREMENT
