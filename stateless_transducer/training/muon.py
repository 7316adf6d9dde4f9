"""Muon, for models that have to learn from few hours (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

Letters: n matrices of equal shape, A rows, B columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from stateless_transducer.training.scaled_adam import by_shape

_foreach: Any = torch
"""torch, for its functions on lists of tensors, which its stubs lack."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of the polynomial that moves singular values towards 1 (Jordan et al. 2024)."""
_ITERATIONS = 5
_EPS = 1e-8
_RMS_OF_ADAM = 0.2
"""Typical root mean square of Adam's direction (arXiv 2502.16982, section 2.2)."""
_Result = TypeVar("_Result")


class Muon(Optimizer):
    """Muon for the matrices of linear layers, AdamW for all other parameters.

    The momentum of each matrix is replaced by the nearest matrix with orthogonal rows or columns, so that all
    directions are learned equally fast, not those with large gradients alone. The factor ``0.2 sqrt(max(A, B))`` gives
    such a step the root mean square of Adam's (arXiv 2502.16982, equation 4), so that one learning rate suits both.

    Args:
        params: groups of parameters. Those of a group with ``"are_matrices": True`` have two dimensions, and further
            ones of size 1 at most, as in convolutions with kernels of size 1.
        lr: learning rate.
        momentum: decay of the mean gradient of matrices; Nesterov's form.
        betas: decay of the means of AdamW.
        weight_decay: decoupled weight decay of all parameters.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "are_matrices": False}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], _Result] | None = None) -> _Result | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moving:
                continue
            _foreach._foreach_mul_(moving, 1 - group["lr"] * group["weight_decay"])
            if not group["are_matrices"]:
                self._move(moving, group["lr"], *group["betas"])
                continue
            for matrices in by_shape(moving):
                self._move_matrices(matrices, group["lr"], group["momentum"])
        return loss

    def state_shapes(self) -> dict[nn.Parameter, dict[str, tuple[int, ...]]]:
        """Return the shapes of the state of each matrix; the others have that of AdamW."""
        groups = [group["params"] for group in self.param_groups if group["are_matrices"]]
        return {matrix: {"mean_grad": tuple(matrix.shape)} for matrices in groups for matrix in matrices}

    def _move_matrices(self, matrices: list[nn.Parameter], rate: float, momentum: float) -> None:
        """Move matrices of equal shape."""
        gradients, means = [matrix.grad for matrix in matrices], self._states(matrices, "mean_grad")
        _foreach._foreach_lerp_(means, gradients, 1 - momentum)
        directions = torch.stack(_foreach._foreach_lerp(gradients, means, momentum)).flatten(2)  # (n, A, B)
        scale = rate * _RMS_OF_ADAM * max(directions.shape[1:]) ** 0.5
        moves = orthogonalized(directions).reshape(len(matrices), *matrices[0].shape)
        _foreach._foreach_add_(matrices, list(moves.unbind()), alpha=-scale)

    def _move(self, parameters: list[nn.Parameter], rate: float, beta1: float, beta2: float) -> None:
        """Move other parameters (arXiv 1711.05101, algorithm 2)."""
        gradients = [parameter.grad for parameter in parameters]
        means, squares = self._states(parameters, "exp_avg"), self._states(parameters, "exp_avg_sq")
        steps = [self.state[parameter].setdefault("step", torch.zeros(())) for parameter in parameters]
        _foreach._foreach_add_(steps, 1)
        _foreach._foreach_lerp_(means, gradients, 1 - beta1)
        _foreach._foreach_mul_(squares, beta2)
        _foreach._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        counts = [step.item() for step in steps]
        sizes = _foreach._foreach_sqrt(squares)
        _foreach._foreach_div_(sizes, [(1 - beta2**count) ** 0.5 for count in counts])
        _foreach._foreach_add_(sizes, _EPS)
        _foreach._foreach_addcdiv_(parameters, means, sizes, [-rate / (1 - beta1**count) for count in counts])

    def _states(self, parameters: list[nn.Parameter], name: str) -> list[Tensor]:
        """Return part of the state of parameters, zero at first."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]


def orthogonalized(matrices: Tensor) -> Tensor:
    """Move the singular values of matrices to about 1, between 0.7 and 1.2, and keep their singular vectors.

    Newton-Schulz iteration; singular values below a thousandth of the norm stay smaller. With x the matrix, each
    iteration multiplies it by a polynomial of ``x x^T``. All these commute, so their product is computed first, from
    small square matrices.

    Args:
        matrices: (n, A, B).

    Returns:
        (n, A, B).
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    square = x @ x.mT
    polynomial = product = _polynomial(square)
    for _ in range(_ITERATIONS - 1):
        square = polynomial @ square @ polynomial
        polynomial = _polynomial(square)
        product = polynomial @ product
    x = product @ x
    return x.mT if is_tall else x


def _polynomial(square: Tensor) -> Tensor:
    """Return a I + b x + c x^2 of symmetric matrices x, (n, A, A)."""
    a, b, c = _COEFFICIENTS
    value = torch.baddbmm(square, square, square, beta=b, alpha=c)
    value.diagonal(dim1=1, dim2=2).add_(a)
    return value


def linear_weights(modules: Iterable[nn.Module]) -> set[Tensor]:
    """Return the weights of linear layers, and of convolutions with kernels of size 1, within modules."""
    layers = {layer for module in modules for layer in module.modules()}
    return {
        layer.weight
        for layer in layers
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, (nn.Conv1d, nn.Conv2d)) and set(layer.kernel_size) == {1} and layer.groups == 1)
    }
