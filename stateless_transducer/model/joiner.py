"""Joiner: ``tanh(encoder_out + decoder_out)`` and one linear map.

Letters: D width, V vocabulary with blank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Joiner(nn.Module):
    """Joiner: logits of the next token or blank."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.output_linear = nn.Linear(dim, vocab_size)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.output_linear.weight.device

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """Map encoder and decoder outputs, (..., D) each and broadcast, to logits (..., V)."""
        return self.output_linear(torch.tanh(encoder_out + decoder_out))
