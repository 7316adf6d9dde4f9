"""Swoosh activations (Zipformer, arXiv 2310.11230, section 3.4).

Unlike Swish, they fall slowly towards the left, so that a unit with negative inputs still learns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_SLOPE = 0.08


def swoosh_l(x: Tensor) -> Tensor:
    """Compute ``log(1 + exp(x - 4)) - 0.08 x - 0.035``, for modules that are off until an input is large."""
    return _swoosh(x, 4.0, 0.035)


def swoosh_r(x: Tensor) -> Tensor:
    """Compute ``log(1 + exp(x - 1)) - 0.08 x - 0.313261687``, which is 0 at 0."""
    return _swoosh(x, 1.0, 0.313261687)


def _swoosh(x: Tensor, shift: float, offset: float) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        return _Swoosh.apply(x, shift, offset)
    return _value(x, shift, offset)


def _value(x: Tensor, shift: float, offset: float) -> Tensor:
    return F.softplus(x - shift).add_(x, alpha=-_SLOPE).sub_(offset)


class _Swoosh(torch.autograd.Function):
    """Swoosh whose gradient needs the input alone; autograd would store two tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: float, offset: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x)
        ctx.shift = shift
        return _value(x, shift, offset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return torch.sigmoid(x - ctx.shift).sub_(_SLOPE).mul_(grad), None, None
