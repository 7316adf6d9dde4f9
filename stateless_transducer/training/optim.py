"""Optimizers and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from stateless_transducer.training.config import FineTuneConfig, OptimConfig, TrainConfig
from stateless_transducer.training.objective import Objective

Schedule = Callable[[int, float], float]
"""(Number of the step, from 1; share done of the epochs over which the rate falls) -> learning rate."""


def noam_schedule(*, factor: float, model_size: int, warm_step: int) -> Schedule:
    """``factor * model_size^-0.5 * min(step^-0.5, step * warm_step^-1.5)`` (arXiv 1706.03762, section 5.3)."""
    return lambda step, done: factor * model_size**-0.5 * min(step**-0.5, step * warm_step**-1.5)


def cosine_schedule(*, peak: float, warm_step: int) -> Schedule:
    """Half a cosine from ``peak`` down to a hundredth of it, where it stays, and a linear start of ``warm_step``."""

    def rate(step: int, done: float) -> float:
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return peak * cosine * min(1.0, step / warm_step)

    return rate


def build_schedule(config: OptimConfig, *, model_size: int) -> Schedule:
    """Of the learning rate, as `build_optimizer` takes it."""
    if config.optimizer == "noam":
        return noam_schedule(factor=config.lr_factor, model_size=model_size, warm_step=config.warm_step)
    return cosine_schedule(peak=config.peak_lr, warm_step=config.warm_step)


def warm_up_fault(config: TrainConfig, num_batches: int, *, model_size: int) -> str:
    """What to say where the learning rate does not even come to half of its peak; empty: it does.

    Args:
        config: how it rises, and for how many epochs.
        num_batches: of an epoch.
        model_size: width of the encoder, for noam.
    """
    optim, total = config.optim, num_batches * config.num_epochs
    over = num_batches * (optim.decay_epochs or config.num_epochs)
    rate_at = build_schedule(optim, model_size=model_size)
    # a thousand places are enough to find the highest
    highest = max((rate_at(step, step / over) for step in range(1, total + 1, 1 + total // 1000)), default=math.inf)
    peak = rate_at(optim.warm_step, 0.0)
    if highest >= peak / 2:
        return ""
    # noam's peak is the higher, the sooner it comes
    adamw = "" if optim.optimizer == "adamw" else "--optimizer adamw "
    return (
        f"`--warm-step` {optim.warm_step} is too long for {total} batches ({config.num_epochs} epochs of "
        f"{num_batches}): the learning rate does not rise above {highest:.2g}, and its peak would be {peak:.2g}. Say "
        f"`{adamw}--warm-step {max(1, total // 10)}`, or make more batches of the data: `--num-epochs`, or a smaller "
        "`--max-duration`."
    )


def build_optimizer(
    objective: Objective, config: OptimConfig, fine_tune: FineTuneConfig
) -> tuple[torch.optim.Optimizer, Schedule]:
    """The optimizer and its schedule; `set_rate` sets the learning rate before each step.

    Args:
        objective: what is trained; parameters that `freeze` has frozen are left out.
        config: chooses.
        fine_tune: which layers learn slower.
    """
    groups = _groups(objective, fine_tune.layer_lr_decay)
    schedule = build_schedule(config, model_size=objective.width)
    if config.optimizer == "noam":
        return torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-9), schedule
    # fused: one pass over the parameters, three times faster than a loop of small operations on a CPU
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    return optimizer, schedule


def set_rate(optimizer: torch.optim.Optimizer, rate: float, config: OptimConfig) -> None:
    """Learning rate of each group; a resumed optimizer brings the old settings, the present ones count."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_scale"]
        if config.optimizer == "adamw":
            group["weight_decay"] = config.weight_decay


def freeze(objective: Objective, num_layers: int) -> None:
    """Freeze the input stage and the first layers of the encoder; 0: nothing.

    Raises:
        ValueError: the encoder has fewer layers.
    """
    stages = objective.stages
    if num_layers >= len(stages):
        raise ValueError(f"`freeze_layers` {num_layers} is more than the {len(stages) - 1} layers of the encoder.")
    if num_layers:
        for stage in stages[: num_layers + 1]:
            stage.requires_grad_(False)


def _groups(objective: Objective, decay: float) -> list[dict]:
    """Parameters by how fast they learn, in a fixed order."""
    stages = objective.stages
    top = len(stages)
    depth_of = {parameter: depth for depth, stage in enumerate(stages) for parameter in stage.parameters()}
    groups: dict[int, list[nn.Parameter]] = {}
    for parameter in objective.parameters():
        if parameter.requires_grad:
            # without a decay all are one group
            depth = top if decay == 1 else depth_of.get(parameter, top)
            groups.setdefault(depth, []).append(parameter)
    return [{"params": own, "rate_scale": decay ** (top - depth)} for depth, own in sorted(groups.items())]
