"""What a search finds."""

from __future__ import annotations

from dataclasses import dataclass


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
