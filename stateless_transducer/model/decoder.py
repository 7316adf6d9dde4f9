"""Stateless decoder: an embedding and a convolution over the last few tokens (arXiv 2002.03499, plus the convolution).

Letters: N utterances, U tokens, L tokens of a window or more, V vocabulary, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stateless_transducer.model.regularize import Balancer

_CHANNELS_PER_GROUP = 4


class StatelessDecoder(nn.Module):
    """Prediction network without a state: its output depends only on the last ``context_size`` tokens.

    In a context, blanks stand before the first token. With a depthwise convolution, their vectors are zero. With a
    grouped one, as in icefall's Zipformer, the last of them has a learned vector, and those before it are zero.
    """

    def __init__(
        self, vocab_size: int, dim: int, blank_id: int, context_size: int, *, is_grouped: bool = False
    ) -> None:
        super().__init__()
        self.blank_id: int = blank_id
        self.context_size: int = context_size
        self.output_dim: int = dim
        self.is_grouped: bool = is_grouped
        self.embedding: nn.Embedding = nn.Embedding(vocab_size, dim, padding_idx=None if is_grouped else blank_id)
        if context_size > 1:
            groups = dim // _CHANNELS_PER_GROUP if is_grouped else dim
            self.conv: nn.Conv1d = nn.Conv1d(dim, dim, context_size, groups=groups, bias=False)
        if is_grouped:
            self.balancer1: Balancer = _balancer()
        if is_grouped and context_size > 1:
            self.balancer2: Balancer = _balancer()

    def forward(self, contexts: Tensor) -> Tensor:
        """Compute one output per window of ``context_size`` tokens.

        Args:
            contexts: (N, L), integer, L >= context_size. Ids below 0 stand for nothing.

        Returns:
            (N, L - context_size + 1, D).
        """
        return self._convolved(self._embedded(contexts))

    def _embedded(self, contexts: Tensor) -> Tensor:
        """Map (N, L) to (N, L, D)."""
        x = self.embedding(contexts.clamp(min=0))
        return self.balancer1(x.masked_fill((contexts < 0)[:, :, None], 0.0)) if self.is_grouped else x

    def _convolved(self, x: Tensor) -> Tensor:
        """Map (N, L, D) to (N, L - context_size + 1, D)."""
        if self.context_size == 1:
            return x
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.balancer2(x.relu()) if self.is_grouped else x

    def step(self, contexts: Tensor) -> Tensor:
        """Compute `forward` for one window, (N, context_size) -> (N, D), with few operations, for the searches."""
        if self.is_grouped:
            return self(self.mark_padding(contexts))[:, 0]
        x = self.embedding(contexts)
        if self.context_size == 1:
            return x[:, 0]
        return (x * self.conv.weight[:, 0].T).sum(1)

    def all_prefixes(self, tokens: Tensor) -> Tensor:
        """Map (N, U) to (N, U+1, D): row u has seen the first u tokens, preceded by blanks."""
        x = self._embedded(nn.functional.pad(tokens, (1, 0), value=self.blank_id))
        # after the balancer, whose statistics are those of tokens
        return self._convolved(nn.functional.pad(x, (0, 0, self.context_size - 1, 0)))

    def mark_padding(self, contexts: Tensor) -> Tensor:
        """Return contexts (N, context_size) with -1 for each blank that another one follows, as tokens never are."""
        is_blank = contexts == self.blank_id
        return contexts.masked_fill(nn.functional.pad(is_blank[:, :-1] & is_blank[:, 1:], (0, 1)), -1)

    @torch.no_grad()
    def tables(self) -> list[Tensor]:
        """Return (V, D) for each token of the context; the sum of its rows is the output of the convolution."""
        embedding = self.embedding.weight
        if self.context_size == 1:
            return [embedding.clone()]
        # (groups, channels out, channels in) for each position
        groups = self.conv.groups
        kernels = self.conv.weight.unflatten(0, (groups, -1)).unbind(-1)
        inputs = embedding.unflatten(1, (groups, -1))
        return [torch.einsum("vgi,goi->vgo", inputs, kernel).flatten(1) for kernel in kernels]


def _balancer() -> Balancer:
    return Balancer(min_positive=0.0, max_positive=1.0, min_abs=0.5, max_abs=1.0, prob=0.05)
