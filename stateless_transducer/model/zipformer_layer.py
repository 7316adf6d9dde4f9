"""A layer of a Zipformer and its modules (Yao et al. 2023, arXiv 2310.11230, figure 2).

Balancers, whiteners, skips and dropouts act in training alone.

Letters: N utterances, T frames of a stack, C channels, H heads, P position features; Q, R, V sizes of a head's queries,
position queries and values; K kernel of the convolutions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stateless_transducer.model.attention import by_key
from stateless_transducer.model.layers import depthwise, scaled_linear
from stateless_transducer.model.regularize import Balancer, Schedule, Whiten, chance, penalize_large
from stateless_transducer.model.zipformer_parts import (
    BiasNorm,
    Bypass,
    continued,
    drop_channels,
    kept_sequences,
    masked,
)
from stateless_transducer.ops.swoosh import swoosh_l, swoosh_r

# finite, unlike -inf: a padding frame may see no frame at all
_HIDDEN = -1000.0


class Timeline(NamedTuple):
    """Relations of the frames of a stack: T frames, which see S, the frames before a chunk and themselves."""

    positions: Tensor
    """(S+T-1, P), position features of the offsets -(S-1)..T-1."""
    padding: Tensor
    """(N, T), True after the end of an utterance."""
    hidden: Tensor
    """(N, T, S) or (N, 1, S), True where a frame (row) must not see another one (column)."""
    ends: Tensor
    """(N,), the frame from which on there is nothing: T, or the end of the utterance."""
    chunk: int
    """Frames of a chunk, after which a causal convolution does not look; -1: one chunk."""


class LayerState(NamedTuple):
    """Frames before a chunk that a layer keeps: L for the attention, K // 2 for the convolutions."""

    keys: Tensor
    """(N, L, H * Q)."""
    gated: Tensor
    """(N, L, C'), what the nonlinear attention mixes."""
    values1: Tensor
    """(N, L, H * V)."""
    values2: Tensor
    """(N, L, H * V)."""
    convolved1: Tensor
    """(N, K // 2, C), what the convolution sees."""
    convolved2: Tensor
    """(N, K // 2, C)."""


class LayerSizes(NamedTuple):
    """Sizes of a layer."""

    dim: int
    num_heads: int
    query_dim: int
    position_query_dim: int
    value_dim: int
    positions_dim: int
    feedforward_dim: int
    """Width inside the second feed-forward module; the first has 3/4 of it, the third 5/4."""
    kernel: int
    is_causal: bool


class ZipformerLayer(nn.Module):
    """Zipformer layer: attention weights computed once and used three times, feed-forwards, convolutions, bypasses."""

    def __init__(self, sizes: LayerSizes, *, dropout: float, skip_rate: Schedule) -> None:
        super().__init__()
        dim, hidden = sizes.dim, sizes.feedforward_dim
        self._sizes = sizes
        # no operation uses it; icefall's checkpoints have it
        self.bypass_scale = nn.Parameter(torch.full((dim,), 0.5), requires_grad=False)
        self.bypass, self.bypass_mid = Bypass(dim, skip_rate), Bypass(dim)
        self.self_attn_weights = AttentionWeights(sizes)
        self.self_attn1, self.self_attn2 = SelfAttention(sizes), SelfAttention(sizes)
        self.feed_forward1 = FeedForward(dim, hidden * 3 // 4, dropout)
        self.feed_forward2 = FeedForward(dim, hidden, dropout)
        self.feed_forward3 = FeedForward(dim, hidden * 5 // 4, dropout)
        self.nonlin_attention = NonlinearAttention(dim, gated_dim(dim))
        self.conv_module1 = ConvolutionModule(dim, sizes.kernel, is_causal=sizes.is_causal)
        self.conv_module2 = ConvolutionModule(dim, sizes.kernel, is_causal=sizes.is_causal)
        self.norm = BiasNorm(dim)
        self.attention_skip_rate = Schedule((0, 0.2), (4000, 0.05), (16000, 0.0))
        self.conv_skip_rate = Schedule((0, 0.2), (4000, 0.05), (16000, 0.0))
        self.feed_forward_skip_rate = Schedule((0, 0.1), (4000, 0.01), (50000, 0.0))
        self.const_attention_rate = Schedule((0, 0.25), (4000, 0.025))
        self.balancer1 = Balancer(min_positive=0.45, max_positive=0.55, min_abs=0.2, max_abs=4.0)
        self.balancer_na = _balancer_of_residual(Schedule((0, 0.004), (4000, 0.02)), 100.0)
        self.balancer_ff2 = _balancer_of_residual(Schedule((0, 0.0), (4000, 0.1)), 2.0)
        self.balancer_ff3 = _balancer_of_residual(Schedule((0, 0.0), (4000, 0.2)), 4.0)
        self.balancer2 = Balancer(min_positive=0.45, max_positive=0.55, min_abs=0.1, max_abs=4.0)
        self.whiten = Whiten(limit=Schedule((0, 4.0), (20000, 12.0), default=4.0), grad_scale=0.01)

    def forward(self, x: Tensor, timeline: Timeline) -> Tensor:
        """Map (N, T, C) to (N, T, C)."""
        before = x
        weights = self.self_attn_weights(x, timeline)
        kept = kept_sequences(x, self.attention_skip_rate)
        x = x + self.feed_forward1(x)
        x = x + masked(self.balancer_na(self.nonlin_attention(x, self._weights_of_one_head(weights))), kept)
        x = x + masked(self.self_attn1(x, weights), kept)
        x = x + masked(self.conv_module1(x, timeline), kept_sequences(x, self.conv_skip_rate))
        x = x + masked(self.balancer_ff2(self.feed_forward2(x)), kept_sequences(x, self.feed_forward_skip_rate))
        x = self.bypass_mid(before, x)
        x = x + masked(self.self_attn2(x, weights), kept)
        x = x + masked(self.conv_module2(x, timeline), kept_sequences(x, self.conv_skip_rate))
        x = x + masked(self.balancer_ff3(self.feed_forward3(x)), kept_sequences(x, self.feed_forward_skip_rate))
        x = self.bypass(before, self.norm(self.balancer1(x)))
        return self.whiten(self.balancer2(x))

    def step(self, x: Tensor, timeline: Timeline, past: LayerState) -> tuple[Tensor, LayerState]:
        """Map a chunk (N, T, C) to (N, T, C), in evaluation, and return the past of the next one."""
        before = x
        weights, keys = self.self_attn_weights.step(x, timeline, past.keys)
        x = x + self.feed_forward1(x)
        y, gated = self.nonlin_attention.step(x, weights[:, 0], past.gated)
        x = x + y
        y, values1 = self.self_attn1.step(x, weights, past.values1)
        x = x + y
        y, convolved1 = self.conv_module1.step(x, timeline.chunk, past.convolved1)
        x = x + y
        x = self.bypass_mid(before, x + self.feed_forward2(x))
        y, values2 = self.self_attn2.step(x, weights, past.values2)
        x = x + y
        y, convolved2 = self.conv_module2.step(x, timeline.chunk, past.convolved2)
        x = x + y
        x = self.bypass(before, self.norm(x + self.feed_forward3(x)))
        return x, LayerState(keys, gated, values1, values2, convolved1, convolved2)

    def initial_state(self, num_streams: int, left_frames: int) -> LayerState:
        """Return the state of N new streams that keep L frames for the attention: zeros."""
        sizes, (L, side) = self._sizes, (left_frames, self._sizes.kernel // 2)
        values = (L, sizes.num_heads * sizes.value_dim)
        shapes = ((L, sizes.num_heads * sizes.query_dim), (L, gated_dim(sizes.dim)), values, values)
        shapes += ((side, sizes.dim), (side, sizes.dim))
        return LayerState(*(self.bypass_scale.new_zeros(num_streams, *shape) for shape in shapes))

    def _weights_of_one_head(self, weights: Tensor) -> Tensor:
        """Return (N, T, T): the weights of head 0, or by chance in training, the same for all frames that it sees."""
        first = weights[:, 0]
        if self.training and chance(float(self.const_attention_rate)):
            seen = (first > 0).to(first.dtype)
            return seen / seen.sum(-1, keepdim=True)
        return first


def gated_dim(dim: int) -> int:
    """Return C', the width inside of the nonlinear attention."""
    return 3 * dim // 4


def _balancer_of_residual(min_abs: Schedule, max_abs: float) -> Balancer:
    return Balancer(min_positive=0.3, max_positive=0.7, min_abs=min_abs, max_abs=max_abs, prob=0.05)


class AttentionWeights(nn.Module):
    """Attention weights by content and by offset: softmax of ``q_t . k_s + p_t . r_{s-t}`` over the keys s."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        H, Q, R = sizes.num_heads, sizes.query_dim, sizes.position_query_dim
        self.num_heads, self.query_dim, self.position_query_dim = H, Q, R
        # the scale stands for that of the scores, which are not divided by sqrt(Q)
        self.in_proj = scaled_linear(sizes.dim, H * (2 * Q + R), Q**-0.25)
        self.linear_pos = scaled_linear(sizes.positions_dim, H * R, 0.05, bias=False)
        self.position_skip_rate = Schedule((0, 0.5), (4000, 0.0))
        self.balance_keys = Balancer(min_positive=0.4, max_positive=0.6, min_abs=0.0, max_abs=100.0, prob=0.025)
        limit = Schedule((0, 3.0), (20000, 6.0), default=3.0)
        self.whiten_keys = Whiten(num_groups=H, limit=limit, grad_scale=0.025)

    def forward(self, x: Tensor, timeline: Timeline) -> Tensor:
        """Map (N, T, C) to weights (N, H, T, T), which sum to 1 over the last axis."""
        query, key, position_query = self._projected(x)
        return self._weights(query, self.whiten_keys(self.balance_keys(key)), position_query, timeline)

    def step(self, x: Tensor, timeline: Timeline, past: Tensor) -> tuple[Tensor, Tensor]:
        """Map a chunk (N, T, C) and the keys before it to weights (N, H, T, S), and to the keys before the next one."""
        query, key, position_query = self._projected(x)
        key, past = continued(past, key)
        return self._weights(query, key, position_query, timeline), past

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (N, T, C) to queries and keys, (N, T, H * Q) each, and position queries (N, T, H * R)."""
        H, Q, R = self.num_heads, self.query_dim, self.position_query_dim
        return self.in_proj(x).split([H * Q, H * Q, H * R], dim=-1)

    def _weights(self, query: Tensor, key: Tensor, position_query: Tensor, timeline: Timeline) -> Tensor:
        """Compute weights (N, H, T, S) from the queries of T frames and the keys of S."""
        (N, T, _), S = query.shape, key.shape[1]
        H, Q, R = self.num_heads, self.query_dim, self.position_query_dim
        query = query.view(N, T, H, Q).transpose(1, 2)  # (N, H, T, Q)
        key = key.view(N, S, H, Q).transpose(1, 2)  # (N, H, S, Q)
        scores = query @ key.transpose(2, 3)
        positions = timeline.positions
        if self.training and chance(float(self.position_skip_rate)):
            # computed all the same: DDP wants a gradient for every parameter in every update
            positions = torch.zeros_like(positions)
        position_query = position_query.view(N, T, H, R).transpose(1, 2)
        r = self.linear_pos(positions).view(S + T - 1, H, R).permute(1, 2, 0)  # (H, R, S+T-1)
        scores = scores + by_key(position_query @ r)
        if self.training:
            scores = penalize_large(scores, limit=25.0, penalty=1e-4)
        scores = scores.masked_fill(timeline.hidden[:, None], _HIDDEN)
        return scores.softmax(-1).to(scores.dtype)


class SelfAttention(nn.Module):
    """Mean of values by given attention weights."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.num_heads = sizes.num_heads
        self.in_proj = nn.Linear(sizes.dim, sizes.num_heads * sizes.value_dim)
        self.out_proj = scaled_linear(sizes.num_heads * sizes.value_dim, sizes.dim, 0.05)
        self.whiten = Whiten(limit=Schedule((0, 7.5), (20000, 22.5), default=7.5), grad_scale=0.01)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Map (N, T, C) and weights (N, H, T, T) to (N, T, C)."""
        return self._mixed(self.in_proj(x), weights)

    def step(self, x: Tensor, weights: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Map a chunk (N, T, C), weights (N, H, T, S) and the values before it to (N, T, C), and to the next past."""
        values, past = continued(past, self.in_proj(x))
        return self._mixed(values, weights), past

    def _mixed(self, values: Tensor, weights: Tensor) -> Tensor:
        """Map values (N, S, H * V) and weights (N, H, T, S) to (N, T, C)."""
        values = values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, H, S, V)
        return self.whiten(self.out_proj((weights @ values).transpose(1, 2).flatten(2)))


class NonlinearAttention(nn.Module):
    """Gate, mix by the attention weights of one head, gate again: ``out(y * (weights @ (x * tanh(s))))``."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, 3 * hidden_dim)
        self.out_proj = scaled_linear(hidden_dim, dim, 0.05)
        self.balancer = Balancer(
            min_positive=Schedule((0, 0.25), (20000, 0.05)),
            max_positive=Schedule((0, 0.75), (20000, 0.95)),
            min_abs=0.5,
            max_abs=5.0,
        )
        self.whiten1 = Whiten(limit=Schedule((0, 5.0), (20000, 10.0), default=5.0), grad_scale=0.01)
        self.whiten2 = Whiten(limit=Schedule((0, 5.0), (20000, 15.0), default=5.0), grad_scale=0.01)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Map (N, T, C) and weights (N, T, T) to (N, T, C)."""
        s, x, y = self.in_proj(x).chunk(3, dim=-1)
        x = self.whiten1(x) * self.balancer(s).tanh()
        return self.whiten2(self.out_proj((weights @ x) * y))

    def step(self, x: Tensor, weights: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Map a chunk (N, T, C), weights (N, T, S) and gated frames before it to (N, T, C), and to the next past."""
        s, x, y = self.in_proj(x).chunk(3, dim=-1)
        gated, past = continued(past, x * s.tanh())
        return self.out_proj((weights @ gated) * y), past


class FeedForward(nn.Module):
    """Linear map, SwooshL, linear map."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, hidden_dim)
        self.out_proj = scaled_linear(hidden_dim, dim, 0.1)
        self.hidden_balancer = Balancer(min_positive=0.3, max_positive=1.0, min_abs=0.75, max_abs=5.0)
        self.dropout = Schedule((0, 3 * dropout), (20000, dropout))
        self.out_whiten = Whiten(limit=Schedule((0, 7.5), (20000, 15.0), default=7.5), grad_scale=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, C) to (N, T, C)."""
        x = swoosh_l(self.hidden_balancer(self.in_proj(x)))
        return self.out_whiten(self.out_proj(drop_channels(x, self.dropout)))


class ConvolutionModule(nn.Module):
    """Gated linear map, depthwise convolution over time, SwooshR, linear map."""

    def __init__(self, dim: int, kernel: int, *, is_causal: bool) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.depthwise_conv = (
            ChunkConvolution(dim, kernel) if is_causal else nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        )
        self.out_proj = scaled_linear(dim, dim, 0.05)
        self.balancer1 = Balancer(
            min_positive=Schedule((0, 0.05), (8000, 0.025)),
            max_positive=1.0,
            min_abs=1.5,
            max_abs=Schedule((0, 5.0), (8000, 10.0), default=1.0),
        )
        self.balancer2 = Balancer(
            min_positive=Schedule((0, 0.1), (8000, 0.05)),
            max_positive=1.0,
            min_abs=Schedule((0, 0.2), (20000, 0.5)),
            max_abs=10.0,
        )
        self.whiten = Whiten(limit=Schedule((0, 7.5), (20000, 15.0), default=7.5), grad_scale=0.01)

    def forward(self, x: Tensor, timeline: Timeline) -> Tensor:
        """Map (N, T, C) to (N, T, C)."""
        # otherwise, the convolution would mix padding frames into the utterance
        x = self._gated(x).masked_fill(timeline.padding[:, :, None], 0.0)
        if isinstance(self.depthwise_conv, ChunkConvolution):
            x = self.depthwise_conv(x, timeline.chunk, timeline.ends)
        else:
            x = depthwise(x, self.depthwise_conv, padding=self.depthwise_conv.kernel_size[0] // 2)
        return self._projected(x)

    def step(self, x: Tensor, chunk: int, past: Tensor) -> tuple[Tensor, Tensor]:
        """Map a chunk (N, T, C) and the frames before it, (N, K // 2, C), to (N, T, C), and to the next past."""
        assert isinstance(self.depthwise_conv, ChunkConvolution)
        x, past = self.depthwise_conv.step(self._gated(x), chunk, past)
        return self._projected(x), past

    def _gated(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        return x * self.balancer1(gate).sigmoid()

    def _projected(self, x: Tensor) -> Tensor:
        return self.out_proj(swoosh_r(self.whiten(self.balancer2(x))))


class ChunkConvolution(nn.Module):
    """Depthwise convolution that sees all frames before, and those after within the chunk.

    It is the sum of a causal convolution and of a symmetric one that sees zeros outside of the chunk. The latter is
    scaled by ``1 + left + right`` near the edges of the chunk, where zeros make its output smaller.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.chunkwise_conv_scale = nn.Parameter(torch.zeros(2, dim, kernel))
        self.causal_conv = nn.Conv1d(dim, dim, (kernel + 1) // 2, groups=dim)
        self.chunkwise_conv = nn.Conv1d(dim, dim, kernel, groups=dim)
        nn.init.uniform_(self.causal_conv.bias, -0.1, 0.1)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, chunk: int, ends: Tensor) -> Tensor:
        """Map (N, T, C), with zeros in padding frames, to (N, T, C). See `Timeline` for the other arguments."""
        T, side = x.shape[1], self.kernel // 2
        past = depthwise(F.pad(x, (0, 0, side, 0)), self.causal_conv, padding=0)
        if chunk < 0:
            present = depthwise(x, self.chunkwise_conv, padding=side)
        else:
            chunks = F.pad(x, (0, 0, 0, -T % chunk)).reshape(-1, chunk, x.shape[2])
            present = depthwise(chunks, self.chunkwise_conv, padding=side).reshape(len(x), -1, x.shape[2])[:, :T]
        return past + present * self._edge_scale(T, chunk, ends)

    def step(self, x: Tensor, chunk: int, past: Tensor) -> tuple[Tensor, Tensor]:
        """Map a chunk (N, T, C) and the frames before it, (N, K // 2, C), to (N, T, C), and to the next past."""
        present = depthwise(x, self.chunkwise_conv, padding=self.kernel // 2)
        left, right = self.chunkwise_conv_scale.transpose(1, 2).unbind()  # (K, C) each
        missing = chunk - self.kernel
        scale = 1 + F.pad(left, (0, 0, 0, missing)) + F.pad(right, (0, 0, missing, 0))
        frames, next_past = continued(past, x)
        return depthwise(frames, self.causal_conv, padding=0) + present * scale, next_past

    def _edge_scale(self, T: int, chunk: int, ends: Tensor) -> Tensor:
        """Return (N, T, C). The chunk of an utterance that is shorter than it ends with the utterance."""
        sizes = (ends if chunk < 0 else ends.clamp(max=chunk))[:, None]
        from_left = torch.arange(T, device=ends.device) % sizes
        from_right = sizes - 1 - from_left
        # row `kernel` is for all positions that are not near an edge
        left, right = F.pad(self.chunkwise_conv_scale, (0, 1)).transpose(1, 2).unbind()  # (K+1, C) each
        K = self.kernel
        near_right = torch.where(from_right < K, K - 1 - from_right, K)
        return 1 + F.embedding(from_left.clamp(max=K), left) + F.embedding(near_right, right)
