"""Joiner: ``tanh(encoder_out + decoder_out)`` and one linear map.

Letters: E width of the encoder's output, P width of the decoder's, D width of the joiner, V vocabulary with blank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stateless_transducer.model.layers import scaled_linear


class Joiner(nn.Module):
    """Joiner: logits of the next token or blank.

    Args:
        dim: D.
        vocab_size: V.
        input_dims: E and P, if linear maps bring encoder and decoder to width D; None: both have it.
    """

    def __init__(self, dim: int, vocab_size: int, input_dims: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.encoder_proj: nn.Module = nn.Identity()
        self.decoder_proj: nn.Module = nn.Identity()
        if input_dims is not None:
            self.encoder_proj, self.decoder_proj = (scaled_linear(width, dim, 0.25) for width in input_dims)
        self.output_linear: nn.Linear = nn.Linear(dim, vocab_size)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.output_linear.weight.device

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """Map projected outputs of encoder and decoder, (..., D) each and broadcast, to logits (..., V)."""
        return self.output_linear(torch.tanh(encoder_out + decoder_out))
