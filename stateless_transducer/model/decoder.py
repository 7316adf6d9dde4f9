"""Stateless decoder: an embedding and a convolution over the last few tokens (arXiv 2002.03499, plus the convolution).

Letters: N utterances, U tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn


class StatelessDecoder(nn.Module):
    """Prediction network without a state: its output depends on the last ``context_size`` tokens alone."""

    def __init__(self, vocab_size: int, dim: int, blank_id: int, context_size: int) -> None:
        super().__init__()
        self.blank_id, self.context_size = blank_id, context_size
        # padding_idx: before the first token there is a blank, whose embedding is and stays zero
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=blank_id)
        if context_size > 1:
            self.conv = nn.Conv1d(dim, dim, context_size, groups=dim, bias=False)

    def forward(self, contexts: Tensor) -> Tensor:
        """Each window of ``context_size`` tokens gives one output.

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
        """`forward` of one window each, (N, context_size) -> (N, D): a few gathers and products, for the searches."""
        x = self.embedding(contexts)
        if self.context_size == 1:
            return x[:, 0]
        return (x * self.conv.weight[:, 0].T).sum(1)

    def all_prefixes(self, tokens: Tensor) -> Tensor:
        """(N, U) -> (N, U+1, D): row u has seen the first u tokens, blanks before them."""
        return self(nn.functional.pad(tokens, (self.context_size, 0), value=self.blank_id))
