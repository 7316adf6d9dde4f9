"""Optimisers and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from stateless_transducer.training.config import TrainConfig

Schedule = Callable[[int], float]
"""Number of the step, from 1 -> learning rate."""


def noam_schedule(*, factor: float, model_size: int, warm_step: int) -> Schedule:
    """``factor * model_size^-0.5 * min(step^-0.5, step * warm_step^-1.5)`` (arXiv 1706.03762, section 5.3)."""
    return lambda step: factor * model_size**-0.5 * min(step**-0.5, step * warm_step**-1.5)


def cosine_schedule(*, peak: float, warm_step: int, num_steps: int) -> Schedule:
    """Linear up to ``peak`` at ``warm_step``, then half a cosine down to a hundredth of it at ``num_steps``."""

    def rate(step: int) -> float:
        if step < warm_step:
            return peak * step / warm_step
        done = min(1.0, (step - warm_step) / max(1, num_steps - warm_step))
        return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))

    return rate


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainConfig, *, model_size: int, num_steps: int
) -> tuple[torch.optim.Optimizer, Schedule]:
    """The optimiser and its schedule; the trainer sets the learning rate before each step.

    Args:
        parameters: what is trained.
        config: chooses.
        model_size: width of the encoder, for noam.
        num_steps: expected in all, for adamw's cosine.
    """
    if config.optimizer == "noam":
        optimizer = torch.optim.Adam(parameters, lr=0.0, betas=(0.9, 0.98), eps=1e-9)
        return optimizer, noam_schedule(factor=config.lr_factor, model_size=model_size, warm_step=config.warm_step)
    # fused: one pass over the parameters, three times faster than a loop of small operations on a CPU
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    return optimizer, cosine_schedule(peak=config.peak_lr, warm_step=config.warm_step, num_steps=num_steps)
