"""Small parts of a Zipformer (Yao et al. 2023, arXiv 2310.11230): normalization, bypass, changes of the frame rate.

Letters: N utterances, T frames, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stateless_transducer.model.regularize import Schedule, limit_values


class BiasNorm(nn.Module):
    """Scale each frame to ``x * exp(log_scale) / rms(x - bias)``; the bias lets frames keep some of their length."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.empty(dim).normal_(std=1e-4))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C), in float32 under autocast."""
        log_scale = limit_values(self.log_scale, -1.5, 1.5) if self.training else self.log_scale
        square = (x - self.bias).square().mean(-1, keepdim=True)
        return x * (square.rsqrt() * log_scale.exp())


class Bypass(nn.Module):
    """Interpolate between the input and the output of a module: ``before + (after - before) * scale`` per channel.

    In training, gradients keep the scale within 0.9..1, later within 0.2..1, and some sequences skip the module.
    """

    def __init__(self, dim: int, skip_rate: Schedule | None = None) -> None:
        super().__init__()
        self.bypass_scale = nn.Parameter(torch.full((dim,), 0.5))
        self.scale_min, self.skip_rate = Schedule((0, 0.9), (20000, 0.2)), skip_rate

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Map (N, T, C) and (N, T, C) to (N, T, C)."""
        scale = self.bypass_scale
        if self.training:
            scale = limit_values(scale, float(self.scale_min), 1.0)
            if self.skip_rate is not None:
                scale = masked(scale, kept_sequences(after, self.skip_rate))
        return torch.lerp(before, after, scale)


class Downsample(nn.Module):
    """Replace groups of ``factor`` frames by their weighted mean, with learned weights."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.bias = nn.Parameter(torch.zeros(factor))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Map (N, T, C) to (N, ceil(T / factor), C); frames from ``ends``, (N,), on count as the frame before."""
        T, C = x.shape[1:]
        last = x.gather(1, (ends - 1)[:, None, None].expand(-1, 1, C))
        x = torch.cat([x, last.expand(-1, self.factor - 1, -1)], dim=1)
        x = torch.where(torch.arange(x.shape[1], device=x.device)[:, None] < ends[:, None, None], x, last)
        num_groups = (T + self.factor - 1) // self.factor
        return self.step(x[:, : num_groups * self.factor])

    def step(self, x: Tensor) -> Tensor:
        """Map whole groups of frames (N, T * factor, C) to (N, T, C)."""
        N, _, C = x.shape
        groups = x.reshape(N, -1, self.factor, C)
        return (groups * self.bias.softmax(0).to(x.dtype)[:, None]).sum(2)


def downsampled(lens: Tensor, factor: int) -> Tensor:
    """Return the lengths after `Downsample`."""
    return (lens + factor - 1) // factor


def upsample(x: Tensor, factor: int, num_frames: int) -> Tensor:
    """Repeat each frame of (N, T, C) ``factor`` times and cut the result to ``num_frames``."""
    return x[:, :, None].expand(-1, -1, factor, -1).flatten(1, 2)[:, :num_frames]


def continued(past: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the frames before a chunk, (N, L, C), together with its frames x, (N, T, C); and the last L of both."""
    frames = torch.cat([past, x], dim=1)
    return frames, frames[:, x.shape[1] :]


def kept_sequences(x: Tensor, rate: Schedule) -> Tensor | None:
    """Draw a mask (N, 1, ...) of the sequences of x, (N, ...), to keep; None if the rate of the others is 0."""
    if float(rate) == 0:
        return None
    return (torch.rand(len(x), *(1,) * (x.dim() - 1), device=x.device) >= float(rate)).to(x.dtype)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``x * mask``, or x without a mask."""
    return x if mask is None else x * mask


def drop_channels(x: Tensor, rate: Schedule) -> Tensor:
    """In training, set some channels of each sequence (N, T, C) to zero in all frames, and scale up the others."""
    if float(rate) == 0:
        return x
    N, _, C = x.shape
    kept = (torch.rand(N, 1, C, device=x.device) >= float(rate)).to(x.dtype)
    return x * (kept / (1 - float(rate)))
