"""Regularization that acts in training alone: schedules, and corrections of gradients (Zipformer, arXiv 2310.11230).

`Balancer`, `Whiten`, `limit_values` and `penalize_large` return their input unchanged and correct the gradient that
flows back through it. Each acts in some passes only, by chance, which saves time. Chances are drawn from torch's
generator on the CPU, which training seeds for each update: a resumed run draws the same ones.

Letters: C channels, G groups of channels, M all other positions together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from stateless_transducer.ops.arguments import never_compiled

_RMS_PER_ABS = 1.2533
"""RMS of a normal variable per mean of its absolute value: sqrt(pi / 2)."""
_MEAN_SCALE = 0.8139535143
"""A share p of a normal variable is positive if its mean is about this * atanh(2p - 1) standard deviations."""
_TINY = 1e-20


@never_compiled
def chance(probability: float) -> bool:
    """Return True with the given probability."""
    return probability > 0 and bool(torch.rand((), device="cpu") < probability)


class Schedule(nn.Module):
    """Number that depends on the progress of training: piecewise linear between points (count, value).

    ``float(schedule)`` is the value at the count that `set_batch_count` set. Before the first point and after the last
    one, it is constant. It is ``default`` in evaluation mode, and while no count is set.

    A schedule is a module without parameters, so that it is found among the modules of a model, and so that
    ``train()`` and ``eval()`` reach it.
    """

    def __init__(self, *points: tuple[float, float], default: float = 0.0) -> None:
        super().__init__()
        counts = [count for count, _ in points]
        assert points and counts == sorted(counts), points
        self.points, self.default, self._value = points, float(default), float(default)

    def at(self, count: float) -> float:
        """Return the value at a count."""
        (left, value), *later = [(float(count), float(value)) for count, value in self.points]
        for right, next_value in later:
            if count < right:
                progress = max(0.0, count - left) / (right - left)
                return value + (next_value - value) * progress
            left, value = right, next_value
        return value

    def set_batch_count(self, count: float) -> None:
        """Set the count whose value the schedule has."""
        self._value = self.at(count)

    @never_compiled
    def __float__(self) -> float:
        return self._value if self.training else self.default

    def extra_repr(self) -> str:  # noqa: D102
        return ", ".join(f"{count:g}: {value:g}" for count, value in self.points) + f"; default {self.default:g}"


def set_batch_count(model: nn.Module, count: float) -> None:
    """Set the count of all schedules of a model: batches so far, in the unit of its schedules."""
    for module in model.modules():
        if isinstance(module, Schedule):
            module.set_batch_count(count)


class Balancer(nn.Module):
    """Keep the share of positive values and the size of each channel within limits.

    The gradient gets that of a loss per channel, ``|m - clamp(m)| + |log(clamp(rms) / rms)|`` with m the channel's mean
    in standard deviations, scaled to ``grad_scale`` times the gradient's own size. The limits of m follow from the
    shares of positive values, those of the RMS from the mean absolute values, both of a normal distribution.

    Args:
        channel_dim: dimension of the channels.
        min_positive: least share of positive values.
        max_positive: largest share of positive values.
        min_abs: least mean of the absolute values.
        max_abs: largest mean of the absolute values.
        grad_scale: size of the correction, as a share of the gradient.
        prob: probability with which the balancer acts; by default 0.5, falling to 0.125 over 8000 batches.
    """

    def __init__(
        self,
        *,
        channel_dim: int = -1,
        min_positive: float | Schedule = 0.05,
        max_positive: float | Schedule = 0.95,
        min_abs: float | Schedule = 0.2,
        max_abs: float | Schedule = 100.0,
        grad_scale: float | Schedule = 0.04,
        prob: float | Schedule | None = None,
    ) -> None:
        super().__init__()
        self.channel_dim = channel_dim
        self.min_positive, self.max_positive, self.min_abs, self.max_abs = min_positive, max_positive, min_abs, max_abs
        self.grad_scale = grad_scale
        self.prob = Schedule((0, 0.5), (8000, 0.125), default=0.4) if prob is None else prob

    @never_compiled
    def forward(self, x: Tensor) -> Tensor:
        """Return x; in training, its gradient is corrected by chance."""
        if not (self.training and x.requires_grad and chance(float(self.prob))):
            return x
        return _Balanced.apply(
            x,
            self.channel_dim,
            (_mean_limit(float(self.min_positive)), _mean_limit(float(self.max_positive))),
            (_RMS_PER_ABS * float(self.min_abs), _RMS_PER_ABS * float(self.max_abs)),
            float(self.grad_scale),
        )


def _mean_limit(share: float) -> float:
    """Return the mean, in standard deviations, at which a share of the values is positive."""
    return _MEAN_SCALE * math.atanh(min(1 - 1e-10, max(-1 + 1e-10, 2 * share - 1)))


class _Balanced(torch.autograd.Function):
    """See `Balancer`. The gradient of the loss is linear in x, so that statistics per channel suffice."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: FunctionCtx,
        x: Tensor,
        channel_dim: int,
        mean_limits: tuple[float, float],
        rms_limits: tuple[float, float],
        grad_scale: float,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.options = channel_dim, mean_limits, rms_limits, grad_scale  # pyright: ignore[reportAttributeAccessIssue]
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        channel_dim, mean_limits, rms_limits, grad_scale = ctx.options
        values = x.float()
        dims = [dim for dim in range(x.dim()) if dim != channel_dim % x.dim()]
        var, mean = torch.var_mean(values, dims, correction=0, keepdim=True)
        square = var + mean**2
        std, rms = var.clamp(min=_TINY).sqrt(), square.clamp(min=_TINY).sqrt()
        m = mean / std
        m_sign = (m - m.clamp(*mean_limits)).sign()
        rms_sign = (rms - rms.clamp(*rms_limits)).sign()
        # the gradient of m is (1 - m * z) / std with z = (x - mean) / std, that of log rms is x / rms^2
        constant = m_sign / std + rms_sign * mean / rms**2
        # a constant channel can only be shifted
        slope = torch.where(var > _TINY, rms_sign * std / rms**2 - m_sign * m / std, 0)
        size = (constant**2 + slope**2 * var / std**2).sqrt()
        factor = grad_scale / size.clamp(min=_TINY)
        slope = slope / std * factor
        penalty = torch.addcmul(constant * factor - slope * mean, values, slope)
        return torch.addcmul(grad.float(), grad.float().abs(), penalty).to(grad.dtype), None, None, None, None


class Whiten(nn.Module):
    """Keep the covariance of the channels from being dominated by few directions.

    With c the covariance matrices of the groups, the metric ``mean(eigenvalues^2) / mean(eigenvalues)^2`` is 1 if all
    directions are equally strong, and at most C / G. Above the limit, the gradient gets that of the metric, scaled to
    ``grad_scale`` times the gradient's own norm.

    A `Whiten` acts with the larger probability after a pass with the metric above the limit, else with the smaller one.
    This is state: training saves what `whitening_state` returns.

    Args:
        num_groups: G; channels of different groups may be correlated.
        limit: largest metric.
        grad_scale: size of the correction, as a share of the gradient.
        probs: the probabilities with which it acts, after a pass below the limit and above it.
    """

    def __init__(
        self,
        *,
        num_groups: int = 1,
        limit: float | Schedule,
        grad_scale: float | Schedule,
        probs: tuple[float, float] = (0.025, 0.25),
    ) -> None:
        super().__init__()
        self.num_groups, self.limit, self.grad_scale, self.probs = num_groups, limit, grad_scale, probs
        self.is_over = True
        """Whether the last metric that `whitening_state` read was above the limit."""
        self.reading: Tensor | None = None
        """(), bool: the same for the newest metric, on its device; None if there is none since then."""

    @never_compiled
    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., C); in training, its gradient is corrected by chance."""
        if not (self.training and x.requires_grad and chance(self.probs[self.is_over])):
            return x
        return _Whitened.apply(x, self)


class _Whitened(torch.autograd.Function):
    """See `Whiten`."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, module: Whiten) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x)
        ctx.module, ctx.limit, ctx.scale = module, float(module.limit), float(module.grad_scale)  # pyright: ignore[reportAttributeAccessIssue]
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        G = ctx.module.num_groups
        with torch.autocast(x.device.type, enabled=False):
            values = x.float().flatten(0, -2).unflatten(1, (G, -1)).transpose(0, 1)  # (G, M, C / G)
            values = values - values.mean(1, keepdim=True)
            covariance = values.mT @ values  # (G, C / G, C / G)
            num_channels = x.shape[-1]
            mean = covariance.diagonal(dim1=1, dim2=2).sum() / num_channels
            ratio = (covariance**2).sum() / num_channels / mean.clamp(min=_TINY)
            is_over = ratio / mean.clamp(min=_TINY) > ctx.limit
            # the gradient of the metric, up to a factor
            penalty = torch.baddbmm(values, values, covariance, beta=0) - ratio * values
            penalty = penalty.transpose(0, 1).flatten(1).view_as(x)
            norm = grad.float().norm()
            factor = ctx.scale * norm / penalty.norm().clamp(min=_TINY)
            # no branch on the device's result: the CPU would wait for it
            corrected = grad + torch.where(is_over, factor, 0) * penalty
        ctx.module.reading = is_over.detach()
        return corrected.to(grad.dtype), None


def whitening_state(model: nn.Module) -> dict[str, bool]:
    """Return the state of each `Whiten` by name, after a backward pass; see `Whiten`."""
    modules = {name: module for name, module in model.named_modules() if isinstance(module, Whiten)}
    readings = {name: module.reading for name, module in modules.items() if module.reading is not None}
    if readings:
        # one transfer from the device for all
        for name, is_over in zip(readings, torch.stack(list(readings.values())).tolist(), strict=True):
            modules[name].is_over, modules[name].reading = is_over, None
    return {name: module.is_over for name, module in modules.items()}


def load_whitening_state(model: nn.Module, state: Mapping[str, bool]) -> None:
    """Set the state of each `Whiten` to the one that `whitening_state` returned; those without one keep theirs."""
    for name, module in model.named_modules():
        if isinstance(module, Whiten):
            module.is_over, module.reading = bool(state.get(name, module.is_over)), None


@never_compiled
def limit_values(x: Tensor, low: float, high: float, *, prob: float = 0.6) -> Tensor:
    """Return x; with some probability, a gradient step cannot move its values further outside of low..high.

    The sign of the gradient is corrected where a value is outside.
    """
    if not (x.requires_grad and chance(prob)):
        return x
    return _Limited.apply(x, low, high)


class _Limited(torch.autograd.Function):
    """See `limit_values`."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, low: float, high: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x)
        ctx.limits = low, high  # pyright: ignore[reportAttributeAccessIssue]
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,), (low, high) = ctx.saved_tensors, ctx.limits
        return torch.where(x < low, -grad.abs(), torch.where(x > high, grad.abs(), grad)), None, None


@never_compiled
def penalize_large(x: Tensor, *, limit: float, penalty: float, prob: float = 0.1) -> Tensor:
    """Return x; with some probability, ``penalty * sign(x)`` is added to the gradient where ``abs(x) > limit``."""
    if not (x.requires_grad and chance(prob)):
        return x
    return _Penalized.apply(x, limit, penalty)


class _Penalized(torch.autograd.Function):
    """See `penalize_large`. Signs take one byte each instead of the values' four."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, limit: float, penalty: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward((x > limit).to(torch.int8) - (x < -limit).to(torch.int8))
        ctx.penalty = penalty  # pyright: ignore[reportAttributeAccessIssue]
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        (signs,) = ctx.saved_tensors
        return grad.add(signs, alpha=ctx.penalty), None, None
