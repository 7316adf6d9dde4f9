"""ScaledAdam, the optimizer of Zipformer (arXiv 2310.11230, section 3.5).

Letters: n parameters of equal shape, treated as one stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

_foreach: Any = torch
"""torch, for its functions on lists of tensors, which its stubs lack."""
_EPS = 1e-8
_SCALAR_RATE = 0.1
"""Learning rate of scalars, and of the sizes of the other parameters, relative to that of their directions."""
_SCALAR_MAX = 10.0
_MIN_RMS, _MAX_RMS = 1e-5, 3.0
_MAX_SCALE_STEP = 0.1
_SIZE_PERIOD = 4
"""Steps between two updates of the sizes of parameters."""
_CLIPPING_PERIOD = 100
"""Steps between two updates of the threshold of clipping, and number of norms that it depends on."""
_EARLY_STEPS = (10, 20, 40)
"""Steps of the first updates of the threshold, with twice the scale."""

_CHUNK_NUMEL = 2**18
"""Elements of a stack that are updated together: few calls for small parameters, and little memory."""

StateShapes = dict[str, tuple[int, ...] | type]
"""Shapes of the tensors, and types of the numbers, in the state of a parameter by name."""
_Result = TypeVar("_Result")


class ScaledAdam(Optimizer):
    """Adam whose steps are proportional to the RMS of each parameter, and which learns that RMS as well.

    With m the RMS of a parameter p, each step moves p by ``-lr * m`` times Adam's direction and, every 4th step, by a
    multiple of p itself, which Adam derives from the gradient by the logarithm of m. Momentum averages the moves,
    without bias correction. So neither the scale of the loss nor that of a parameter matters. Scalars take Adam's steps
    with a tenth of the learning rate.

    Gradients are scaled down where their norm, with each parameter's part multiplied by m, exceeds ``clipping_scale``
    times the median of 100 earlier ones. Gradients whose norm is not finite count as zero.

    Parameters of equal shape in a group are updated together; their state is that of the first one.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay of the moves, and of the squared gradient.
        clipping_scale: largest norm of the gradient, relative to the median.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 0.045,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        clipping_scale: float = 2.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "clipping_scale": clipping_scale})

    @torch.no_grad()
    def step(self, closure: Callable[[], _Result] | None = None) -> _Result | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the parameters; those without a gradient count as having a zero one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            stacks = self._stacks(group["params"])
            factor = _clipping_factor(stacks, group["clipping_scale"])
            for stack in stacks:
                step = stack.state["step"]
                for chunk in stack.chunks():
                    chunk.update(step, factor, lr=group["lr"], betas=group["betas"])
                stack.state["step"] = step + 1
        return loss

    def state_shapes(self) -> dict[nn.Parameter, StateShapes]:
        """Return the shapes of the state of each stack, by its first parameter."""
        shapes: dict[nn.Parameter, StateShapes] = {}
        for group in self.param_groups:
            for number, stack in enumerate(by_shape(group["params"])):
                of_clipping = {"model_norms": (_CLIPPING_PERIOD,), "model_norm_threshold": float} if not number else {}
                shapes[stack[0]] = {"step": int, **_shapes(stack), **of_clipping}
        return shapes

    def _stacks(self, parameters: list[nn.Parameter]) -> list[_Stack]:
        """Stack the parameters by shape; a new stack gets its initial state."""
        stacks = [_Stack(members, self.state[members[0]]) for members in by_shape(parameters)]
        for stack in stacks:
            if not stack.state:
                stack.state.update(stack.initial_state())
        return stacks


def by_shape(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return the parameters of each shape, in the order of the shapes."""
    members: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for parameter in parameters:
        members.setdefault(tuple(parameter.shape), []).append(parameter)
    return [members[shape] for shape in sorted(members)]


def _shapes(parameters: Sequence[nn.Parameter]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in the initial state of a stack; scalars have no size to learn."""
    n, shape = len(parameters), tuple(parameters[0].shape)
    rms = (n, *(1 for _ in shape))
    shapes = {"delta": (n, *shape), "exp_avg_sq": (n, *shape)}
    if parameters[0].numel() > 1:
        shapes |= {"param_rms": rms, "scale_grads": (_SIZE_PERIOD, *rms), "scale_exp_avg_sq": rms}
    return shapes


@dataclass(frozen=True)
class _Stack:
    """Parameters of equal shape, and their common state."""

    parameters: list[nn.Parameter]
    state: dict[str, Any]
    """``step``, and tensors by name; their dimension of length n is the first one, that of ``scale_grads`` the second.
    """

    @property
    def is_scalar(self) -> bool:
        return self.parameters[0].numel() == 1

    def weights(self) -> Tensor:
        """Return the weights of the gradients' norms in the norm of all, (n,)."""
        if self.is_scalar:
            return self.state["delta"].new_full((len(self.parameters),), _SCALAR_RATE)
        return self.state["param_rms"].flatten()

    def initial_state(self) -> dict[str, Any]:
        zeros = {name: self.parameters[0].new_zeros(shape) for name, shape in _shapes(self.parameters).items()}
        if self.is_scalar:
            return {"step": 0, **zeros}
        return {"step": 0, **zeros, "param_rms": torch.cat([_rms(parameter[None]) for parameter in self.parameters])}

    def chunks(self) -> Iterator[_Stack]:
        """Split the stack into parts of limited size, whose state are views."""
        n = max(1, _CHUNK_NUMEL // self.parameters[0].numel())
        names = ("delta", "exp_avg_sq", *(() if self.is_scalar else ("param_rms", "scale_exp_avg_sq")))
        for start in range(0, len(self.parameters), n):
            part = slice(start, start + n)
            state = {name: self.state[name][part] for name in names}
            if not self.is_scalar:
                state["scale_grads"] = self.state["scale_grads"][:, part]
            yield _Stack(self.parameters[part], state)

    def update(self, step: int, factor: float, *, lr: float, betas: tuple[float, float]) -> None:
        """Make step number ``step``, from 0, with gradients that are to be multiplied by a factor."""
        gradient = _stacked(
            [
                torch.zeros_like(parameter) if parameter.grad is None or not factor else parameter.grad
                for parameter in self.parameters
            ]
        )
        beta1, beta2 = betas
        delta, exp_avg_sq = self.state["delta"].mul_(beta1), self.state["exp_avg_sq"]
        if not self.is_scalar:
            self._update_sizes(gradient, step, factor, lr=lr, betas=betas)
        # the factor goes into the coefficients: one pass over the gradient less
        exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=(1 - beta2) * factor**2)
        correction = 1 - beta2 ** (step + 1)
        if correction >= 0.99 and not self.is_scalar:
            correction = 1.0
        # factor * g / (sqrt(v / c) + eps) = factor * sqrt(c) * g / (sqrt(v) + eps * sqrt(c))
        root = correction**0.5
        direction = exp_avg_sq.sqrt().add_(_EPS * root)
        torch.div(gradient, direction, out=direction)
        rate = -lr * (1 - beta1) * factor * root
        if self.is_scalar:
            delta.add_(direction, alpha=rate * _SCALAR_RATE)
            _foreach._foreach_clamp_min_(self.parameters, -_SCALAR_MAX)
            _foreach._foreach_clamp_max_(self.parameters, _SCALAR_MAX)
        else:
            delta.addcmul_(direction, self.state["param_rms"].clamp(min=_MIN_RMS), value=rate)
        _foreach._foreach_add_(self.parameters, list(delta.unbind()))

    def _update_sizes(
        self, gradient: Tensor, step: int, factor: float, *, lr: float, betas: tuple[float, float]
    ) -> None:
        """Note the gradient by the logarithm of the RMS; every 4th step, change the RMS."""
        rms, scale_grads, exp_avg_sq = (self.state[name] for name in ("param_rms", "scale_grads", "scale_exp_avg_sq"))
        values = _stacked(self.parameters)
        products = _dots(values.flatten(1), gradient.flatten(1))
        scale_grads[step % _SIZE_PERIOD] = (products * factor).view_as(rms)
        if step % _SIZE_PERIOD < _SIZE_PERIOD - 1:
            return
        rms.copy_(_rms(values))
        beta = betas[1] ** _SIZE_PERIOD
        exp_avg_sq.mul_(beta).add_(scale_grads.square().mean(0), alpha=1 - beta)
        correction = 1 - beta ** ((step + 1) // _SIZE_PERIOD)
        change = scale_grads.sum(0) / (exp_avg_sq.sqrt() + _EPS) * (-lr * _SCALAR_RATE * correction**0.5)
        change.masked_fill_(rms < _MIN_RMS, 0.0)
        change.clamp_(-_MAX_SCALE_STEP, _MAX_SCALE_STEP)
        change = torch.minimum(change, (_MAX_RMS - rms) / rms)
        self.state["delta"].addcmul_(values, change, value=1 - betas[0])


def _clipping_factor(stacks: list[_Stack], clipping_scale: float) -> float:
    """Note the norm of the gradients, and return the factor that clips them.

    The first step has a factor of 1, or 0 for gradients that are not finite. The state is that of the first stack.
    """
    state, step = stacks[0].state, stacks[0].state["step"]
    norms = state.setdefault("model_norms", torch.zeros(_CLIPPING_PERIOD))
    threshold: float = state.setdefault("model_norm_threshold", math.inf)
    norm = _norm(stacks)
    if step == 0:
        return float(math.isfinite(norm))
    norms[step % _CLIPPING_PERIOD] = norm
    if step in _EARLY_STEPS or step % _CLIPPING_PERIOD == 0:
        newest = norms.sort().values[-step:]
        median = newest[2 * (len(newest) // 4)].item()
        threshold = state["model_norm_threshold"] = clipping_scale * median * (2 if step in _EARLY_STEPS else 1)
    if not math.isfinite(norm):
        return 0.0
    return min(1.0, threshold / max(norm, 1e-20))


def _norm(stacks: Sequence[_Stack]) -> float:
    """Return the norm of all gradients, each multiplied by the RMS of its parameter, or by a constant for scalars."""
    # one call for all gradients, and one transfer from the device
    norms = norms_of_gradients([parameter for stack in stacks for parameter in stack.parameters])
    return torch.linalg.vector_norm(norms * torch.cat([stack.weights() for stack in stacks])).item()


def norms_of_gradients(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the norm of the gradient of each parameter; 0 for those without one."""
    norms = parameters[0].new_zeros(len(parameters))
    numbers = [number for number, parameter in enumerate(parameters) if parameter.grad is not None]
    if numbers:
        norms[numbers] = torch.stack(_foreach._foreach_norm([parameters[number].grad for number in numbers]))
    return norms


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


def _dots(x: Tensor, y: Tensor) -> Tensor:
    """Return the scalar products of the rows of two matrices."""
    # a single product needs no memory for its terms
    return torch.dot(x[0], y[0])[None] if len(x) == 1 else torch.linalg.vecdot(x, y)


def _rms(values: Tensor) -> Tensor:
    """Return the RMS of each member of a stack, (n, 1, ...)."""
    norm = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return (norm / values[0].numel() ** 0.5).view(-1, *[1] * (values.dim() - 1))
