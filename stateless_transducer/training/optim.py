"""Optimizers and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn

from stateless_transducer.checkpoint import is_weight
from stateless_transducer.training.config import FineTuneConfig, OptimConfig, TrainConfig
from stateless_transducer.training.muon import Muon, linear_weights
from stateless_transducer.training.objective import Objective
from stateless_transducer.training.scaled_adam import ScaledAdam
from stateless_transducer.wording import counted

RateSchedule = Callable[[int, int, float], float]
"""(Number of the step, from 1; number of the epoch, from 0; progress through the epochs of decay) -> learning rate."""

_EDEN_START, _EDEN_WARM_UP = 0.5, 500
"""Eden's warm-up: factor of the learning rate at its beginning, and its number of steps."""


def noam_schedule(*, factor: float, model_size: int, warm_step: int) -> RateSchedule:
    """``factor * model_size^-0.5 * min(step^-0.5, step * warm_step^-1.5)`` (arXiv 1706.03762, section 5.3)."""
    return lambda step, epoch, progress: factor * model_size**-0.5 * min(step**-0.5, step * warm_step**-1.5)


def cosine_schedule(*, peak: float, warm_step: int) -> RateSchedule:
    """Linear warm-up over ``warm_step`` steps, and half a cosine from ``peak`` to a hundredth of it."""

    def rate(step: int, epoch: int, progress: float) -> float:
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return peak * cosine * min(1.0, step / warm_step)

    return rate


def eden_schedule(*, base_lr: float, lr_batches: float, lr_epochs: float) -> RateSchedule:
    """``base_lr * (1 + (step / lr_batches)^2)^-1/4 * (1 + (epoch / lr_epochs)^2)^-1/4`` (arXiv 2310.11230, eq. 12).

    Over the first 500 steps, a further factor rises from a half to 1.
    """

    def rate(step: int, epoch: int, progress: float) -> float:
        warm_up = min(1.0, _EDEN_START + (1 - _EDEN_START) * step / _EDEN_WARM_UP)
        by_step = ((step**2 + lr_batches**2) / lr_batches**2) ** -0.25
        by_epoch = ((epoch**2 + lr_epochs**2) / lr_epochs**2) ** -0.25
        return base_lr * by_step * by_epoch * warm_up

    return rate


def build_schedule(config: OptimConfig, *, model_size: int) -> RateSchedule:
    """Return the schedule that the options choose."""
    if config.optimizer == "noam":
        return noam_schedule(factor=config.lr_factor, model_size=model_size, warm_step=config.warm_step)
    if config.optimizer == "scaled-adam":
        return eden_schedule(base_lr=config.base_lr, lr_batches=config.lr_batches, lr_epochs=config.lr_epochs)
    return cosine_schedule(peak=config.peak_lr, warm_step=config.warm_step)


def warm_up_fault(config: TrainConfig, num_batches: int, *, model_size: int) -> str:
    """Describe a warm-up so long that the learning rate stays below half of its peak; empty if it is not.

    Eden begins with half of its peak.

    Args:
        config: options of the learning rate, and the number of epochs.
        num_batches: number of batches per epoch.
        model_size: width of the encoder, for noam.
    """
    optim, total = config.optim, num_batches * config.num_epochs
    if optim.optimizer == "scaled-adam":
        return ""
    decay_steps = num_batches * (optim.decay_epochs or config.num_epochs)
    rate_at = build_schedule(optim, model_size=model_size)
    # a thousand steps are enough to find the highest rate
    highest = max(
        (rate_at(step, 0, step / decay_steps) for step in range(1, total + 1, 1 + total // 1000)), default=math.inf
    )
    peak = rate_at(optim.warm_step, 0, 0.0)
    if highest >= peak / 2:
        return ""
    # with noam, an earlier peak is a higher one: propose adamw
    adamw = "" if optim.has_cosine else "--optimizer adamw "
    return (
        f"`--warm-step` {optim.warm_step} is too long for {total} batches ({counted(config.num_epochs, 'epoch')} "
        f"of {num_batches}): the learning rate does not rise above {highest:.2g}, and its peak would be {peak:.2g}. "
        f"Pass `{adamw}--warm-step {max(1, total // 10)}` or `--size auto`, or train on more batches: raise "
        "`--num-epochs`, or lower `--max-duration`."
    )


def build_optimizer(
    objective: Objective, config: OptimConfig, fine_tune: FineTuneConfig
) -> tuple[torch.optim.Optimizer, RateSchedule]:
    """Build the optimizer and its schedule; `set_rate` sets the learning rate before each step.

    Args:
        objective: parameters to train; those that `freeze` has frozen are skipped.
        config: kind and options of the optimizer.
        fine_tune: decay of the learning rate over the layers.
    """
    groups = _groups(objective, fine_tune.layer_lr_decay)
    schedule = build_schedule(config, model_size=objective.width)
    if config.optimizer == "noam":
        return _without_compiler(torch.optim.Adam)(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-9), schedule
    if config.optimizer == "scaled-adam":
        return _without_compiler(ScaledAdam)(groups, lr=0.0), schedule
    if config.optimizer == "muon":
        groups = _groups(objective, fine_tune.layer_lr_decay, linear_weights(objective.stages))
        return _without_compiler(Muon)(groups, lr=0.0, weight_decay=config.weight_decay), schedule
    # fused: one pass over the parameters, three times faster than a loop of small operations on a CPU
    adamw = _without_compiler(torch.optim.AdamW)
    return adamw(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True), schedule


def _without_compiler(optimizer: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Return a subclass of an optimizer whose methods do not import torch's compiler.

    The import takes as long as that of torch itself.
    torch decorates these methods for compiled optimizers, and each decorator imports the compiler at the first call.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: unwrap(getattr(optimizer, name)) for name in names}
    # the decorator of `step` also switches off gradients
    return type(optimizer.__name__, (optimizer,), {**methods, "step": torch.no_grad()(unwrap(optimizer.step))})


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load what the `state_dict` of an optimizer returned; options such as the decay stay those of the new one.

    Raises:
        ValueError: the state is that of other parameters, or of another optimizer.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shapes_of = optimizer.state_shapes() if isinstance(optimizer, (ScaledAdam, Muon)) else {}
    for number, values in state["state"].items():
        if number not in range(len(parameters)):
            raise ValueError(f"there is no parameter {number!r}")
        shape = tuple(parameters[number].shape)
        shapes = shapes_of.get(parameters[number], {"step": (), "exp_avg": shape, "exp_avg_sq": shape})
        if values.keys() != shapes.keys() or not all(_fits(values[name], shapes[name]) for name in shapes):
            raise ValueError(f"parameter {number} needs {', '.join(f'{name} {shapes[name]}' for name in shapes)}")
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})


def _fits(value: object, shape: tuple[int, ...] | type) -> bool:
    if isinstance(shape, type):
        return isinstance(value, shape)
    return is_weight(value) and tuple(value.shape) == shape


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of each group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_scale"]


def freeze(objective: Objective, num_layers: int) -> None:
    """Freeze the input stage and the first layers of the encoder; with 0 layers, freeze nothing.

    Raises:
        ValueError: the encoder has fewer layers.
    """
    stages = objective.stages
    if num_layers >= len(stages):
        raise ValueError(
            f"`freeze_layers` {num_layers} is more than the {counted(len(stages) - 1, 'layer')} of the encoder."
        )
    if num_layers:
        for stage in stages[: num_layers + 1]:
            stage.requires_grad_(False)


def _groups(objective: Objective, decay: float, matrices: Collection[Tensor] = ()) -> list[dict]:
    """Group the parameters by learning rate and, apart from others, ``matrices``, in a fixed order."""
    stages = objective.stages
    top = len(stages)
    depth_of = {parameter: depth for depth, stage in enumerate(stages) for parameter in stage.parameters()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in objective.parameters():
        if parameter.requires_grad:
            # without a decay, all parameters form one group
            depth = top if decay == 1 else depth_of.get(parameter, top)
            groups.setdefault((depth, parameter in matrices), []).append(parameter)
    return [
        {"params": parameters, "rate_scale": decay ** (top - depth), "are_matrices": are_matrices}
        for (depth, are_matrices), parameters in sorted(groups.items())
    ]
