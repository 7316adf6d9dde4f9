"""Layers that several modules of the network share.

Letters: N utterances, T frames, C channels, K kernel of a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NARROW = 16
"""Channels up to which oneDNN never finishes building a kernel of 15 or more frames in bfloat16 or float16, on
processors with AVX-512 (torch 2.13)."""


def scaled_linear(in_dim: int, out_dim: int, scale: float, *, bias: bool = True) -> nn.Linear:
    """Return a linear map with ``scale`` times the usual initial weights, and biases within ``+-0.1 * scale``."""
    linear = nn.Linear(in_dim, out_dim, bias=bias)
    with torch.no_grad():
        linear.weight.mul_(scale)
        if bias:
            linear.bias.uniform_(-0.1 * scale, 0.1 * scale)
    return linear


def depthwise(x: Tensor, conv: nn.Conv1d, *, padding: int) -> Tensor:
    """Convolve each channel of (N, T, C) over time, with zeros on both sides: (N, T + 2 * padding - K + 1, C)."""
    return depthwise_with(x, conv.weight, conv.bias, padding=padding)


def depthwise_with(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int) -> Tensor:
    """Do as `depthwise`, with a weight (C, 1, K), such as a part of a convolution's, and a bias (C,).

    As a convolution over an image of height 1 with channels last, it needs no copy, and on a CPU a tenth of the time.
    """
    is_16_bit = x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)
    if torch.compiler.is_compiling() or is_16_bit and weight.shape[0] <= _NARROW:
        # the compiler chooses layouts itself, and fails on this one
        return F.conv1d(x.transpose(1, 2), weight, bias, padding=padding, groups=weight.shape[0]).transpose(1, 2)
    image = x.transpose(1, 2)[:, :, None]
    # a gradient through `weight[:, :, None]` would have other strides than the weight, of which DDP warns
    kernel = weight.squeeze(1)[:, None, None]
    y = F.conv2d(image, kernel, bias, padding=(0, padding), groups=weight.shape[0])
    return y[:, :, 0].transpose(1, 2)
