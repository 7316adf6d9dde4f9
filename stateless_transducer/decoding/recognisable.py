"""What a search needs of a model, torch or other.

Letters: N utterances, T_in feature frames, F mel bins, T encoder frames, V vocabulary, D joiner width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Recognisable(Protocol):
    """What a search needs of a model."""

    blank_id: int
    context_size: int

    def encode(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T_in, F) and (N,) -> encoder_out (N, T, D) and encoder_out_lens (N,)."""
        ...

    def predict(self, contexts: Tensor) -> Tensor:
        """(N, context_size) -> decoder_out (N, D)."""
        ...

    def join(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """(N, D) and (N, D) -> logits (N, V)."""
        ...
