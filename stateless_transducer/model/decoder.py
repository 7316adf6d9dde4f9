"""Stateless decoder: an embedding and a convolution over the last few tokens (arXiv 2002.03499, plus the convolution).

Letters: N utterances, U tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn


class StatelessDecoder(nn.Module):
    """Prediction network without a state: its output depends only on the last ``context_size`` tokens."""

    def __init__(self, vocab_size: int, dim: int, blank_id: int, context_size: int) -> None:
        super().__init__()
        self.blank_id, self.context_size = blank_id, context_size
        # padding_idx: blanks precede the first token, and their embedding stays zero
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=blank_id)
        if context_size > 1:
            self.conv = nn.Conv1d(dim, dim, context_size, groups=dim, bias=False)

    def forward(self, contexts: Tensor) -> Tensor:
        """Compute one output per window of ``context_size`` tokens.

        Args:
            contexts: (N, L), integer, L >= context_size.

        Returns:
            (N, L - context_size + 1, D).
        """
        x = self.embedding(contexts)
        if self.context_size > 1:
            x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return x

    def step(self, contexts: Tensor) -> Tensor:
        """Compute `forward` for one window, (N, context_size) -> (N, D), with few operations, for the searches."""
        x = self.embedding(contexts)
        if self.context_size == 1:
            return x[:, 0]
        return (x * self.conv.weight[:, 0].T).sum(1)

    def all_prefixes(self, tokens: Tensor) -> Tensor:
        """Map (N, U) to (N, U+1, D): row u has seen the first u tokens, preceded by blanks."""
        return self(nn.functional.pad(tokens, (self.context_size, 0), value=self.blank_id))
