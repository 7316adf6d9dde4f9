# pyright: strict
"""Result of a search, and the ranking and hashing of hypotheses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stateless_transducer.decoding.arrays import Array

MAX_EXPANSIONS = 32
"""Largest number of expansions on one frame of Graves' beam search, in multiples of the beam size: an untrained model
could emit symbols without end."""

_MULTIPLIER, _INCREMENT = 6364136223846793005, 1442695040888963407
"""Constants of Knuth's 64-bit linear congruential generator."""


@dataclass(frozen=True)
class Hypothesis:
    """A sequence of tokens with their times and log-probabilities.

    Example:
        >>> checkpoint = load_checkpoint("model.pt")
        >>> model, tokens = checkpoint.model(), checkpoint.token_table
        >>> features = torch.from_numpy(fbank(read_audio("a.wav", 16000), checkpoint.fbank_config))[None]
        >>> encoder_out, lens = model.encode(features, torch.tensor([features.shape[1]]))
        >>> (hypothesis,) = greedy_search(model, encoder_out, lens)
        >>> hypothesis.tokens == tuple(tokens.encode("今天很好"))
        True
        >>> len(hypothesis.frames), hypothesis.score < 0
        (4, True)
    """

    tokens: tuple[int, ...]
    """Ids, without blanks."""
    frames: tuple[int, ...]
    """Encoder frame on which each token was emitted."""
    log_probs: tuple[float, ...]
    """Log-probability of each token where it was emitted."""
    score: float = 0.0
    """Score of the whole hypothesis; see the search that returned it."""


LOST = Hypothesis((), (), (), math.nan)
"""Hypothesis of an utterance for which the model's output is not finite."""


def rank(scores: ArrayLike, num_tokens: ArrayLike, context_size: int, length_norm: float) -> np.ndarray:
    """Return ``scores / (num_tokens + context_size) ** length_norm``; the higher, the better.

    With 1, as icefall does, hypotheses compete by log-probability per token, start blanks counted; with 0 by the whole
    log-probability, which favors short ones.
    """
    return np.asarray(scores) / (np.asarray(num_tokens) + context_size) ** float(length_norm)


def extended_hash(hashes: Array, tokens: Array) -> Array:
    """Return the hash, int64, of each token sequence extended by a token; the empty sequence has hash 0."""
    return hashes * _MULTIPLIER + (tokens + 1) * _INCREMENT
