"""Subsampling of a Zipformer: convolutions over time and frequency, from 100 to 50 frames per second.

Letters: N utterances, T_in feature frames, F mel bins, T frames after subsampling, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stateless_transducer.model.regularize import Balancer, Schedule, Whiten
from stateless_transducer.model.zipformer_parts import BiasNorm, drop_channels, kept_sequences, masked
from stateless_transducer.ops.masks import padding_mask
from stateless_transducer.ops.subsampling import Subsampling
from stateless_transducer.ops.swoosh import swoosh_l, swoosh_r

HALVING = Subsampling(factor=2, min_frames=9)
"""Frames after `ZipformerSubsampling`: frame t sees feature frames 2t .. 2t+8."""
SIDE = 3
"""Frames on each side that the ConvNeXt layer sees."""


class ZipformerSubsampling(nn.Module):
    """Map (N, T_in, F) to (N, T, D), with T = (T_in - 7) // 2: three convolutions, a ConvNeXt layer, a linear map.

    Args:
        channels: channels of the last convolution and the ConvNeXt layer, a multiple of 16; icefall has 128.
    """

    def __init__(self, feature_dim: int, output_dim: int, dropout: float, channels: int = 128) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels // 16, kernel_size=3, padding=(0, 1))
        self.conv2 = nn.Conv2d(channels // 16, channels // 4, kernel_size=3, stride=2)
        self.conv3 = nn.Conv2d(channels // 4, channels, kernel_size=3, stride=(1, 2))
        self.convnext = ConvNeXt(channels)
        self.out = nn.Linear(channels * (((feature_dim - 1) // 2 - 1) // 2), output_dim)
        self.out_norm = BiasNorm(output_dim)
        self.dropout = Schedule((0, 3 * dropout), (20000, dropout))
        self.balancer1 = Balancer(channel_dim=1, max_abs=1.0)
        self.balancer2 = Balancer(channel_dim=1, max_abs=4.0)
        self.balancer3 = Balancer(channel_dim=1, max_abs=4.0)
        self.out_whiten = Whiten(limit=Schedule((0, 4.0), (20000, 8.0), default=4.0), grad_scale=0.02)

    def forward(self, features: Tensor, ends: Tensor) -> Tensor:
        """Map features to frames; frames from ``ends``, (N,), on count as nothing."""
        return self._projected(self.convnext(self._convolved(features), ends))

    def initial_state(self, num_streams: int) -> Tensor:
        """Return the past of the first chunk of N streams: zeros."""
        channels = self.convnext.depthwise_conv.in_channels
        return self.out.weight.new_zeros(num_streams, channels, SIDE, self.out.in_features // channels)

    def step(self, features: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Map the features of a chunk, (N, 2 * T + 13, F), to its frames (N, T, D).

        Args:
            features: begin with the first one that the chunk's first frame sees.
            past: (N, C, 3, F'), see `ConvNeXt.step`.

        Returns:
            The frames, and the past of the next chunk.
        """
        x, past = self.convnext.step(self._convolved(features), past)
        return self._projected(x), past

    def _convolved(self, features: Tensor) -> Tensor:
        """Map (N, T_in, F) to (N, C, T, F')."""
        x = features[:, None]
        if not torch.compiler.is_compiling():
            # the compiler chooses layouts itself
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.conv1(x)
        if self.training:
            x = _SmallerGradient.apply(x, 0.2)
        x = swoosh_r(self.balancer1(x))
        x = swoosh_r(self.balancer2(self.conv2(x)))
        return swoosh_r(self.balancer3(self.conv3(x)))

    def _projected(self, x: Tensor) -> Tensor:
        """Map (N, C, T, F') to (N, T, D)."""
        x = self.out(x.transpose(1, 2).flatten(2))  # (N, T, C * F')
        return drop_channels(self.out_norm(self.out_whiten(x)), self.dropout)


class ConvNeXt(nn.Module):
    """ConvNeXt layer without a norm (arXiv 2201.03545): depthwise 7x7, linear, SwooshL, linear, residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(dim, dim, kernel_size=2 * SIDE + 1, padding=SIDE, groups=dim)
        self.pointwise_conv1 = nn.Conv2d(dim, 3 * dim, kernel_size=1)
        self.pointwise_conv2 = nn.Conv2d(3 * dim, dim, kernel_size=1)
        with torch.no_grad():
            self.pointwise_conv2.weight.mul_(0.01)
            self.pointwise_conv2.bias.uniform_(-0.001, 0.001)  # pyright: ignore[reportOptionalMemberAccess]
        self.skip_rate = Schedule((0, 0.2), (20000, 0.015))
        self.hidden_balancer = Balancer(channel_dim=1, min_positive=0.3, max_positive=1.0, min_abs=0.75, max_abs=5.0)
        self.out_balancer = Balancer(channel_dim=1, min_positive=0.4, max_positive=0.6, min_abs=1.0, max_abs=6.0)
        self.out_whiten = Whiten(limit=5.0, grad_scale=0.01)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Map (N, C, T, F) to (N, C, T, F)."""
        x = x.masked_fill(padding_mask(ends, x.shape[2])[:, None, :, None], 0.0)
        y = self._mixed_channels(self.depthwise_conv(x))
        x = self.out_balancer(x + masked(y, kept_sequences(y, self.skip_rate)))
        return self.out_whiten(x.transpose(1, 3)).transpose(1, 3)

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Map a chunk (N, C, T + 3, F), which ends with 3 frames of the next one, to (N, C, T, F).

        Args:
            x: frames of the chunk.
            past: (N, C, 3, F), the frames before it, or zeros.

        Returns:
            The chunk, and the past of the next one.
        """
        T, conv = x.shape[2] - SIDE, self.depthwise_conv
        frames = torch.cat([past, x], dim=2)
        y = F.conv2d(frames, conv.weight, conv.bias, padding=(0, SIDE), groups=conv.groups)
        return x[:, :, :T] + self._mixed_channels(y), frames[:, :, T : T + SIDE]

    def _mixed_channels(self, x: Tensor) -> Tensor:
        x = swoosh_l(self.hidden_balancer(_pointwise(self.pointwise_conv1, x)))
        return _pointwise(self.pointwise_conv2, x)


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution of kernel 1 to (N, C, T, F) as a linear map, which is faster where channels are last."""
    return F.linear(x.permute(0, 2, 3, 1), conv.weight[:, :, 0, 0], conv.bias).permute(0, 3, 1, 2)


class _SmallerGradient(torch.autograd.Function):
    """Identity whose gradient is scaled, so that the first layer does not learn noise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:  # noqa: D102
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * ctx.scale, None
