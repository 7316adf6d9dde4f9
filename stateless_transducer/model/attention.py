"""Self-attention with relative positions (Transformer-XL, arXiv 1901.02860, section 3.3).

Letters: N utterances, T encoder frames, K keys, H heads, D width, Dh = D / H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def relative_positions(num_frames: int, dim: int, like: Tensor, *, num_past: int = 0) -> Tensor:
    """Sinusoids of the distances K-1, ..., 0, ..., -(T-1).

    Args:
        num_frames: T.
        dim: D, even.
        like: tensor whose device and dtype the result gets.
        num_past: K - T, frames before the first of the T.

    Returns:
        (T+K-1, D): sines in even columns, cosines in odd ones.
    """
    distance = torch.arange(num_past + num_frames - 1, -num_frames, -1, device=like.device, dtype=torch.float32)
    frequency = torch.exp(torch.arange(0, dim, 2, device=like.device) * (-math.log(10000.0) / dim))
    angle = distance[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).to(like.dtype)


class RelativeSelfAttention(nn.Module):
    """Self-attention with the score ``((q_i + u) . k_j + (q_i + v) . r_{i-j}) / sqrt(Dh)`` of query i and key j."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads: int = num_heads
        self.head_dim: int = dim // num_heads
        self.in_proj: nn.Linear = nn.Linear(dim, 3 * dim)
        self.out_proj: nn.Linear = nn.Linear(dim, dim)
        self.linear_pos: nn.Linear = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u: nn.Parameter = nn.Parameter(torch.empty(num_heads, dim // num_heads))
        self.pos_bias_v: nn.Parameter = nn.Parameter(torch.empty(num_heads, dim // num_heads))
        for weight in (self.in_proj.weight, self.pos_bias_u, self.pos_bias_v):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
        """Attend from every frame to the frames of the same utterance that it sees.

        Args:
            x: (N, T, D).
            positions: (2T-1, D), see `relative_positions`.
            hidden: (N, 1 or T, T), True where a frame (row) does not see another one (column); no row hides all.
        """
        return self._attend(*self._projected(x), positions, hidden)

    def step(
        self, x: Tensor, positions: Tensor, hidden: Tensor, past_keys: Tensor, past_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend from the frames of a chunk to those before it and to the chunk.

        Args:
            x: (N, T, D), frames of the chunk.
            positions: (T+K-1, D), see `relative_positions`.
            hidden: (N, 1 or T, K), see `forward`.
            past_keys: (N, H, K-T, Dh), of the frames before the chunk.
            past_values: the same.

        Returns:
            (N, T, D), and keys and values of the last K-T frames.
        """
        T = x.shape[1]
        q, k, v = self._projected(x)
        k, v = torch.cat([past_keys, k], dim=2), torch.cat([past_values, v], dim=2)
        return self._attend(q, k, v, positions, hidden), k[:, :, T:], v[:, :, T:]

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (N, T, D) to queries, keys and values, (N, H, T, Dh) each."""
        N, T, _ = x.shape
        q, k, v = self.in_proj(x).view(N, T, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind()
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, hidden: Tensor) -> Tensor:
        """Map queries (N, H, T, Dh), keys and values (N, H, K, Dh) to (N, T, D)."""
        # use numbers instead of tensor sizes: a traced size cannot be raised to a fractional power
        H, Dh = self.num_heads, self.head_dim
        r = self.linear_pos(positions).view(-1, H, Dh).transpose(0, 1)  # (H, T+K-1, Dh)
        by_content = (q + self.pos_bias_u[:, None]) @ k.transpose(2, 3)
        by_distance = (q + self.pos_bias_v[:, None]) @ r.transpose(1, 2)  # (N, H, T, T+K-1)
        scores = (by_content + by_key(by_distance)) * Dh**-0.5
        scores = scores.masked_fill(hidden[:, None], -torch.inf)
        mixed = scores.softmax(-1) @ v  # (N, H, T, Dh)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


def by_key(by_distance: Tensor) -> Tensor:
    """Map scores by distance, (N, H, T, T+K-1), to scores by key, (N, H, T, K): entry (i, j) is column T-1-i+j."""
    N, H, T, num_distances = by_distance.shape
    K = num_distances - T + 1
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        # strides would become constants of the graph
        padded = nn.functional.pad(by_distance, (0, 1)).flatten(2)[..., T - 1 : -1]
        return padded.view(N, H, T, num_distances)[..., :K]
    by_distance = by_distance.contiguous()
    n, h, t, d = by_distance.stride()
    return by_distance.as_strided((N, H, T, K), (n, h, t - d, d), by_distance.storage_offset() + (T - 1) * d)
