"""Zipformer encoder (Yao et al. 2023, arXiv 2310.11230), offline or causal, as in icefall.

Stacks of layers run at several frame rates, from 50 frames per second down to 6.25 and up again. In this package,
padding and the other utterances of a batch do not change an utterance; in icefall they do, see `Zipformer`.

Letters: N utterances, T_in feature frames, F mel bins, T frames at 50 per second or of a stack, C channels, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stateless_transducer.model.chunks import ChunkChoices, Chunks, chunk_mask
from stateless_transducer.model.encoder import CausalEncoder
from stateless_transducer.model.regularize import Schedule
from stateless_transducer.model.zipformer_embed import HALVING, ZipformerSubsampling
from stateless_transducer.model.zipformer_layer import LayerSizes, LayerState, Timeline, ZipformerLayer
from stateless_transducer.model.zipformer_parts import Bypass, Downsample, downsampled, masked, upsample
from stateless_transducer.ops.masks import padding_mask
from stateless_transducer.ops.subsampling import Subsampling

_WARMUP = 4000.0
"""Batches during which one layer after the other begins to be used always."""
_POSITION_DROPOUT = 0.15
_FEATURE_MASK_RATE = 0.125
"""Probability in training that a sequence loses all channels that may be masked, and that it loses half of them."""


class StackSizes(NamedTuple):
    """Sizes of a stack."""

    num_layers: int
    factor: int
    """Frames at 50 per second for each frame of the stack."""
    unmasked_dim: int
    """Channels that training never masks."""
    layer: LayerSizes


class ZipformerState(NamedTuple):
    """State of a causal Zipformer for N streams."""

    stacks: tuple[tuple[LayerState, ...], ...]
    """State of each layer of each stack."""
    embedded: Tensor
    """(N, C, 3, F'), frames before the chunk that the ConvNeXt layer of the subsampling sees."""
    num_frames: Tensor
    """(N,), int64, frames of 20 ms before the chunk."""


class Zipformer(CausalEncoder):
    """Zipformer encoder: subsampling by 2, stacks of layers, and a final subsampling by 2.

    Args:
        pads_like_icefall: Let padding frames of a batch reach the convolutions of the subsampling, the last frame of a
            downsampled stack, and the last chunk, as in icefall, whose models were trained so.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        stacks: Sequence[StackSizes],
        dropout: float,
        chunk_choices: ChunkChoices,
        chunk_factor: int,
        subsampling_channels: int,
        pads_like_icefall: bool,
        subsampling: Subsampling,
    ) -> None:
        super().__init__()
        dims = [sizes.layer.dim for sizes in stacks]
        self.width = self.output_dim = max(dims)
        self.subsampling, self.pads_like_icefall = subsampling, pads_like_icefall
        self._dims, self._unmasked_dims = dims, [sizes.unmasked_dim for sizes in stacks]
        self.is_causal, self.chunk_choices, self.chunk_factor = stacks[0].layer.is_causal, chunk_choices, chunk_factor
        # a chunk of c frames reads 2c + 13 feature frames: 7 for the convolutions, 6 for the ConvNeXt layer
        self.look_ahead = 13
        self.embed = ZipformerSubsampling(feature_dim, dims[0], dropout, subsampling_channels)
        # the first layers are always used from the second share of the warm-up on
        share = _WARMUP / (len(stacks) + 1)
        self.stacks = nn.ModuleList(
            Stack(sizes, dropout=dropout, warmup=(share * number, share * (number + 1)))
            for number, sizes in enumerate(stacks, start=1)
        )
        self.downsample_output = Downsample(2)

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The subsampling and the stacks."""
        return [self.embed, *self.stacks]

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """See `Encoder.forward`."""
        outputs, ends = self.stack_outputs(features, feature_lens)
        return self.downsample_output(self._most_recent(outputs), ends), self.subsampling.lens(feature_lens)

    def stack_outputs(self, features: Tensor, feature_lens: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the output (N, T, C) of each stack, and the ends (N,), see `Timeline`."""
        num_frames = (features.shape[1] - 7) // 2
        # attention to no frame at all would give NaN
        lens = HALVING.lens(feature_lens).clamp(min=1)
        ends = torch.zeros_like(lens) + num_frames if self.pads_like_icefall else lens
        x = self.embed(features, ends)
        chunks = self.batch_chunks()
        masks = self._feature_masks(x)
        outputs = []
        before = self._dims[0]
        for stack, dim, mask in zip(self.stacks, self._dims, masks, strict=True):
            x = _resized(x, before, dim)
            before = dim
            x = stack(x, lens, ends, chunks, mask, self.recompute_stages and self.training)
            outputs.append(x)
        return outputs, ends

    def initial_state(self, num_streams: int) -> ZipformerState:
        """See `CausalEncoder.initial_state`."""
        chunks = self.live_chunks()
        stacks = tuple(stack.initial_state(num_streams, chunks) for stack in cast("Sequence[Stack]", self.stacks))
        embedded = self.embed.initial_state(num_streams)
        return ZipformerState(stacks, embedded, torch.zeros(num_streams, dtype=torch.int64, device=embedded.device))

    def encode_chunk(self, features: Tensor, state: ZipformerState) -> tuple[Tensor, ZipformerState]:
        """See `CausalEncoder.encode_chunk`."""
        chunks = self.live_chunks()
        x, embedded = self.embed.step(features, state.embedded)
        outputs: list[Tensor] = []
        states: list[tuple[LayerState, ...]] = []
        stacks = cast("Sequence[Stack]", self.stacks)
        before = self._dims[0]
        for stack, dim, past in zip(stacks, self._dims, state.stacks, strict=True):
            x, next_past = stack.step(_resized(x, before, dim), chunks, past, state.num_frames)
            before = dim
            outputs.append(x)
            states.append(next_past)
        encoder_out = self.downsample_output.step(self._most_recent(outputs))
        return encoder_out, ZipformerState(tuple(states), embedded, state.num_frames + chunks.size)

    def _most_recent(self, outputs: list[Tensor]) -> Tensor:
        """Return (N, T, D): each channel from the last stack that has it."""
        parts, width = [], 0
        for x, dim in zip(reversed(outputs), reversed(self._dims), strict=True):
            if dim > width:
                parts.append(x[:, :, width:])
                width = dim
        return torch.cat(parts, dim=2)

    def _feature_masks(self, x: Tensor) -> Sequence[Tensor | None]:
        """Draw masks (N, 1, C) of the channels of each stack, with zeros for those that a sequence loses."""
        if not self.training:
            return [None] * len(self._dims)
        half, quarter = (torch.rand(2, len(x), 1, 1, device=x.device) >= _FEATURE_MASK_RATE).to(x.dtype)
        ones = torch.ones_like(half)
        masks = []
        for dim, unmasked in zip(self._dims, self._unmasked_dims, strict=True):
            middle = (dim - unmasked) // 2
            widths = (unmasked, middle, dim - unmasked - middle)
            parts = zip((ones, half, half * quarter), widths, strict=True)
            masks.append(torch.cat([part.expand(-1, -1, width) for part, width in parts], dim=2))
        return masks


class Stack(nn.Module):
    """Layers at one frame rate, with a bypass around them if it is lower than 50 frames per second."""

    def __init__(self, sizes: StackSizes, *, dropout: float, warmup: tuple[float, float]) -> None:
        super().__init__()
        self.factor, self._positions_dim = sizes.factor, sizes.layer.positions_dim
        self._is_causal = sizes.layer.is_causal
        start, end = warmup
        step = (end - start) / sizes.num_layers
        last_rate = 0.035 * math.sqrt(sizes.factor)
        self.layers = nn.ModuleList(
            ZipformerLayer(
                sizes.layer,
                dropout=dropout,
                skip_rate=Schedule((start + step * n, 0.5), (start + step * (n + 1), last_rate)),
            )
            for n in range(sizes.num_layers)
        )
        if sizes.factor > 1:
            self.downsample = Downsample(sizes.factor)
            self.out_combiner = Bypass(sizes.layer.dim)

    def forward(
        self,
        x: Tensor,
        lens: Tensor,
        ends: Tensor,
        chunks: Chunks,
        mask: Tensor | None,
        recompute: bool,
    ) -> Tensor:
        """Map (N, T, C) to (N, T, C).

        Args:
            x: frames at 50 per second.
            lens: (N,), lengths of the utterances, at least 1.
            ends: (N,), see `Timeline`.
            chunks: chunks of the utterances.
            mask: (N, 1, C), 0 in the channels to mask.
            recompute: whether to recompute the activations of the layers for the gradient.
        """
        if self.factor == 1:
            return self._run(x, lens, ends, chunks, mask, recompute)
        y = self.downsample(x, ends)
        lens, ends = downsampled(lens, self.factor), downsampled(ends, self.factor)
        y = self._run(y, lens, ends, chunks.divided(self.factor), mask, recompute)
        return self.out_combiner(x, upsample(y, self.factor, x.shape[1]))

    def _run(
        self,
        x: Tensor,
        lens: Tensor,
        ends: Tensor,
        chunks: Chunks,
        mask: Tensor | None,
        recompute: bool,
    ) -> Tensor:
        """Run the layers at the frame rate of the stack, in which all numbers are."""
        timeline = self._timeline(x, lens, ends, chunks)
        x = masked(x, mask)
        for layer in self.layers:
            x = checkpoint(layer, x, timeline, use_reentrant=False) if recompute else layer(x, timeline)
            x = masked(x, mask)
        return x

    def initial_state(self, num_streams: int, chunks: Chunks) -> tuple[LayerState, ...]:
        """Return the state of the layers for N new streams, from chunks in frames at 50 per second."""
        left_frames = chunks.divided(self.factor).cached_frames
        return tuple(layer.initial_state(num_streams, left_frames) for layer in self._layers)

    def step(
        self, x: Tensor, chunks: Chunks, past: tuple[LayerState, ...], num_frames: Tensor
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Map a chunk (N, T, C) to (N, T, C), and return the past of the next one.

        Args:
            x: frames at 50 per second.
            chunks: chunks of the streams.
            past: state of each layer.
            num_frames: (N,), frames at 50 per second before the chunk.
        """
        y = x if self.factor == 1 else self.downsample.step(x)
        timeline = self._timeline_of_chunk(y, chunks.divided(self.factor), num_frames // self.factor)
        states: list[LayerState] = []
        for layer, state in zip(self._layers, past, strict=True):
            y, next_state = layer.step(y, timeline, state)
            states.append(next_state)
        if self.factor > 1:
            y = self.out_combiner(x, upsample(y, self.factor, x.shape[1]))
        return y, tuple(states)

    @property
    def _layers(self) -> Sequence[ZipformerLayer]:
        return cast("Sequence[ZipformerLayer]", self.layers)

    def _timeline_of_chunk(self, x: Tensor, chunks: Chunks, num_frames: Tensor) -> Timeline:
        """Return the relations of a chunk; all numbers are at the frame rate of the stack."""
        T, L = chunks.size, chunks.cached_frames
        # the youngest frame before the chunk is the last one
        age = torch.arange(L, -T, -1, device=x.device)
        hidden = age > num_frames[:, None]  # (N, L+T)
        padding = torch.zeros_like(hidden[:, L:])
        positions = offset_features(T, L + T, self._positions_dim, x)
        return Timeline(positions, padding, hidden[:, None], torch.full_like(num_frames, T), T)

    def _timeline(self, x: Tensor, lens: Tensor, ends: Tensor, chunks: Chunks) -> Timeline:
        T = x.shape[1]
        positions = offset_features(T, T, self._positions_dim, x)
        positions = nn.functional.dropout(positions, _POSITION_DROPOUT, self.training)
        padding = padding_mask(lens, T)
        hidden = padding[:, None]
        if chunks.size > 0:
            hidden = hidden | ~chunk_mask(T, chunks, x.device)
        return Timeline(positions, padding, hidden, ends, chunks.size)


def _resized(x: Tensor, before: int, dim: int) -> Tensor:
    """Cut the last of ``before`` channels of (N, T, C), or append zeros."""
    return x[:, :, :dim] if dim < before else nn.functional.pad(x, (0, dim - before))


def offset_features(num_queries: int, num_keys: int, dim: int, like: Tensor) -> Tensor:
    """Return position features (S+T-1, P) of the offsets -(S-1)..T-1 of keys from queries, the last T of S frames.

    Offsets are compressed, first logarithmically, then by an arc tangent, so that the features resolve small offsets
    finely and large ones coarsely: cosines in even columns, sines in odd ones, and 1 in the last.

    Args:
        num_queries: T.
        num_keys: S.
        dim: P, even.
        like: tensor whose device and dtype the result gets.
    """
    offset = torch.arange(1 - num_keys, num_queries, device=like.device, dtype=torch.float32)
    compressed = math.sqrt(dim) * offset.sign() * torch.log1p(offset.abs() / math.sqrt(dim))
    angle = torch.atan(compressed * (2 * math.pi / dim))[:, None] * torch.arange(1, dim // 2 + 1, device=like.device)
    features = torch.stack([angle.cos(), angle.sin()], dim=2).flatten(1)
    return torch.cat([features[:, :-1], torch.ones_like(features[:, :1])], dim=1).to(like.dtype)
