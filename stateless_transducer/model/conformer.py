"""Conformer encoder (Gulati et al. 2020, arXiv 2005.08100), as in icefall: LayerNorm in the convolution module.

A causal one sees chunks, see `CausalEncoder`: attention and convolutions are limited to them, or convolutions see
past frames only.

Letters: N utterances or streams, T_in feature frames, F mel bins, T encoder frames, L encoder frames of left context,
C channels, D width, H heads, Dh = D / H, P frames before a chunk that the convolutions see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stateless_transducer.model.attention import RelativeSelfAttention, relative_positions
from stateless_transducer.model.chunks import ChunkChoices, Chunks, chunk_mask
from stateless_transducer.model.encoder import CausalEncoder
from stateless_transducer.model.layers import depthwise, depthwise_with
from stateless_transducer.ops.masks import padding_mask
from stateless_transducer.ops.subsampling import Subsampling


class ConformerState(NamedTuple):
    """State of N streams: the left context of each layer."""

    keys: Tensor
    """(N, layers, H, L, Dh)."""
    values: Tensor
    """(N, layers, H, L, Dh)."""
    convolved: Tensor
    """(N, layers, D, P), inputs of the depthwise convolutions."""
    num_frames: Tensor
    """(N,), int64, encoder frames so far, of which the last L are in the state."""


class Conformer(CausalEncoder):
    """Conformer encoder: subsampling by 4, ``num_layers`` layers, and a linear map."""

    def __init__(
        self,
        *,
        feature_dim: int,
        num_layers: int,
        dim: int,
        num_heads: int,
        feedforward_dim: int,
        conv_kernel: int,
        conv_past: int,
        subsampling_channels: int,
        output_dim: int,
        dropout: float,
        is_causal: bool,
        chunk_choices: ChunkChoices,
        chunk_factor: int,
        subsampling: Subsampling,
    ) -> None:
        super().__init__()
        self.is_causal, self.chunk_choices, self.chunk_factor = is_causal, chunk_choices, chunk_factor
        self.look_ahead = subsampling.min_frames - subsampling.factor
        self._num_heads, self._conv_past = num_heads, conv_past
        self.width: int = dim
        self.output_dim: int = output_dim
        self.subsampling: Subsampling = subsampling
        self.embed: Conv2dSubsampling = Conv2dSubsampling(feature_dim, subsampling_channels, dim)
        self.dropout: nn.Dropout = nn.Dropout(dropout)
        self.layers: nn.ModuleList = nn.ModuleList(
            ConformerLayer(dim, num_heads, feedforward_dim, conv_kernel, conv_past, dropout) for _ in range(num_layers)
        )
        self.after_norm: nn.LayerNorm = nn.LayerNorm(dim)
        self.output: nn.Sequential = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, output_dim))

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The subsampling and the layers."""
        return [self.embed, *self.layers]

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """See `Encoder.forward`."""
        x = self.embed(features)
        lens = self.subsampling.lens(feature_lens)
        # attention to no frame at all would give NaN
        padding = padding_mask(lens.clamp(min=1), x.shape[1])
        chunks = self.batch_chunks().divided(self.chunk_factor)
        hidden = _hidden(padding, chunks)
        positions = self.dropout(relative_positions(x.shape[1], self.width, like=x))
        x = self.dropout(x * self.width**0.5)
        for layer in self.layers:
            if self.recompute_stages and self.training:
                x = checkpoint(layer, x, positions, padding, hidden, chunks.size, use_reentrant=False)
            else:
                x = layer(x, positions, padding, hidden, chunks.size)
        return self.output(self.after_norm(x)), lens

    def initial_state(self, num_streams: int) -> ConformerState:
        """See `CausalEncoder.initial_state`."""
        left_frames = self.live_chunks().divided(self.chunk_factor).cached_frames
        streams_and_layers = num_streams, len(self.layers)
        keys_shape = (*streams_and_layers, self._num_heads, left_frames, self.width // self._num_heads)
        zeros = self.after_norm.weight.new_zeros
        return ConformerState(
            keys=zeros(keys_shape),
            values=zeros(keys_shape),
            convolved=zeros((*streams_and_layers, self.width, self._conv_past)),
            num_frames=zeros(num_streams, dtype=torch.int64),
        )

    def encode_chunk(self, features: Tensor, state: ConformerState) -> tuple[Tensor, ConformerState]:
        """See `CausalEncoder.encode_chunk`."""
        x = self.embed(features) * self.width**0.5
        T, L = x.shape[1], state.keys.shape[3]
        positions = relative_positions(T, self.width, like=x, num_past=L)
        # the last places of the left context are filled first
        is_empty = torch.arange(L, device=x.device) < L - state.num_frames[:, None]
        hidden = F.pad(is_empty, (0, T))[:, None]
        states: list[list[Tensor]] = []
        for i, layer in enumerate(cast("Sequence[ConformerLayer]", self.layers)):
            past = (state.keys[:, i], state.values[:, i], state.convolved[:, i])
            x, *next_past = layer.step(x, positions, hidden, *past)
            states.append(next_past)
        keys, values, convolved = (torch.stack(parts, dim=1) for parts in zip(*states, strict=True))
        next_state = ConformerState(keys, values, convolved, state.num_frames + T)
        return self.output(self.after_norm(x)), next_state


def _hidden(padding: Tensor, chunks: Chunks) -> Tensor:
    """Return the frames that a frame does not see, (N, 1 or T, T): padding, and those outside of its chunks."""
    hidden = padding[:, None]
    if chunks.size < 0:
        return hidden
    frames = torch.arange(padding.shape[1], device=padding.device)
    hidden = hidden | ~chunk_mask(frames.shape[0], chunks, padding.device)
    # the chunks of a padding frame may hold padding alone; ONNX Runtime knows no `eye` of booleans
    return hidden & (frames[:, None] != frames)


class Conv2dSubsampling(nn.Module):
    """Map (N, T_in, F) to (N, T, D), with T = (T_in - 7) // 4 + 1.

    Without padding, frame t sees exactly the feature frames 4t .. 4t+6, so the padding frames after an utterance never
    affect it.
    """

    def __init__(self, feature_dim: int, num_channels: int, output_dim: int) -> None:
        super().__init__()
        self.conv: nn.Sequential = nn.Sequential(
            nn.Conv2d(1, num_channels, kernel_size=3, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(num_channels, num_channels, kernel_size=3, stride=2),
            nn.ReLU(inplace=True),
        )
        self.out: nn.Linear = nn.Linear(num_channels * (((feature_dim - 1) // 2 - 1) // 2), output_dim)

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        if not self.training:
            x = self.conv(features[:, None])  # (N, C, T, F')
            return self.out(x.transpose(1, 2).flatten(2))  # (N, T, C * F')
        # channels last: on a CPU, both passes of 32 channels take 0.6 of the time. The forward pass of one utterance
        # and 512 channels takes 1.2 of it
        first, _, second, _ = cast("tuple[nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU]", tuple(self.conv))
        # squeezed, so that the gradient has the strides of the weight; DDP warns of others
        weight = first.weight.squeeze(1)[:, None]
        x = F.conv2d(features[..., None].permute(0, 3, 1, 2), weight, first.bias, stride=2)
        x = F.relu_(second(F.relu_(x))).permute(0, 2, 3, 1)  # (N, T, F', C)
        weight = self.out.weight.unflatten(1, x.shape[:1:-1]).transpose(1, 2).flatten(1)  # (D, F' * C)
        return F.linear(x.flatten(2), weight, self.out.bias)


class ConformerLayer(nn.Module):
    """Conformer layer: half a feed-forward, attention, convolution, half a feed-forward; pre-norm and residual."""

    def __init__(
        self, dim: int, num_heads: int, feedforward_dim: int, conv_kernel: int, conv_past: int, dropout: float
    ) -> None:
        super().__init__()
        self.feed_forward_macaron: nn.Sequential = _feed_forward(dim, feedforward_dim, dropout)
        self.self_attn: RelativeSelfAttention = RelativeSelfAttention(dim, num_heads)
        self.conv_module: ConvolutionModule = ConvolutionModule(dim, conv_kernel, conv_past)
        self.feed_forward: nn.Sequential = _feed_forward(dim, feedforward_dim, dropout)
        self.norm_ff_macaron: nn.LayerNorm = nn.LayerNorm(dim)
        self.norm_mha: nn.LayerNorm = nn.LayerNorm(dim)
        self.norm_conv: nn.LayerNorm = nn.LayerNorm(dim)
        self.norm_ff: nn.LayerNorm = nn.LayerNorm(dim)
        self.norm_final: nn.LayerNorm = nn.LayerNorm(dim)
        self.dropout: nn.Dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor, hidden: Tensor, chunk: int) -> Tensor:
        """Map (N, T, D) to (N, T, D).

        Args:
            x: (N, T, D).
            positions: (2T-1, D), see `relative_positions`.
            padding: (N, T), True after the end of an utterance.
            hidden: (N, 1 or T, T), see `RelativeSelfAttention`.
            chunk: frames of a chunk; -1: the whole utterance is one.
        """
        x = self._before(x)
        x = x + self.dropout(self.self_attn(self.norm_mha(x), positions, hidden))
        x = x + self.dropout(self.conv_module(self.norm_conv(x), padding, chunk))
        return self._after(x)

    def step(
        self, x: Tensor, positions: Tensor, hidden: Tensor, keys: Tensor, values: Tensor, convolved: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map the frames of a chunk, (N, T, D), and the state of the layer to (N, T, D) and the next state."""
        x = self._before(x)
        attended, keys, values = self.self_attn.step(self.norm_mha(x), positions, hidden, keys, values)
        x = x + attended
        filtered, convolved = self.conv_module.step(self.norm_conv(x), convolved)
        return self._after(x + filtered), keys, values, convolved

    def _before(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.dropout(self.feed_forward_macaron(self.norm_ff_macaron(x)))

    def _after(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.dropout(self.feed_forward(self.norm_ff(x)))
        return self.norm_final(x)


class ConvolutionModule(nn.Module):
    """Convolution module: gated pointwise, depthwise over time, pointwise; padding is zeroed before the depthwise.

    The depthwise convolution sees P frames before a frame, and those after it within the chunk, up to the kernel: Li et
    al. 2023, "Dynamic chunk convolution" (arXiv 2304.09325).
    """

    def __init__(self, dim: int, kernel: int, past: int) -> None:
        super().__init__()
        self._past, self._future = past, kernel - 1 - past
        self.pointwise_conv1: nn.Conv1d = nn.Conv1d(dim, 2 * dim, 1)
        self.depthwise_conv: nn.Conv1d = nn.Conv1d(dim, dim, kernel, groups=dim)
        self.norm: nn.LayerNorm = nn.LayerNorm(dim)
        self.pointwise_conv2: nn.Conv1d = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor, padding: Tensor, chunk: int) -> Tensor:
        """Map (N, T, D) to (N, T, D).

        Args:
            x: (N, T, D).
            padding: (N, T), True after the end of an utterance.
            chunk: frames of a chunk; -1: the whole utterance is one.
        """
        x = F.glu(_pointwise(self.pointwise_conv1, x))
        # otherwise, the convolution would mix padding frames into the utterance
        x = x.masked_fill(padding[:, :, None], 0.0)
        if chunk < 0 and self._past == self._future:
            return self._after_depthwise(depthwise(x, self.depthwise_conv, padding=self._past))
        # past frames and the frame itself, then those after it
        split = self._past + 1
        weight, bias = self.depthwise_conv.weight, self.depthwise_conv.bias
        y = depthwise_with(F.pad(x, (0, 0, self._past, 0)), weight[:, :, :split], bias, padding=0)
        if self._future:
            N, T, D = x.shape
            chunks = F.pad(x, (0, 0, 0, -T % chunk)).reshape(-1, chunk, D)[:, 1:]
            later = depthwise_with(F.pad(chunks, (0, 0, 0, self._future)), weight[:, :, split:], None, padding=0)
            y = y + later.reshape(N, -1, D)[:, :T]
        return self._after_depthwise(y)

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Map the frames of a chunk, (N, T, D), and those before them, (N, D, P), to (N, T, D) and the last P."""
        x = F.glu(_pointwise(self.pointwise_conv1, x)).transpose(1, 2)
        frames = torch.cat([past, x], dim=2)
        y = depthwise(F.pad(frames, (0, self._future)).transpose(1, 2), self.depthwise_conv, padding=0)
        return self._after_depthwise(y), frames[:, :, x.shape[2] :]

    def _after_depthwise(self, x: Tensor) -> Tensor:
        return _pointwise(self.pointwise_conv2, F.silu(self.norm(x)))


def _pointwise(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Apply a convolution of kernel 1 to (N, T, D), without the two transpositions that `conv` itself needs."""
    return F.linear(x, conv.weight[:, :, 0], conv.bias)


def _feed_forward(dim: int, hidden_dim: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden_dim), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden_dim, dim))
