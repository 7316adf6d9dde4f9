"""Optimisers and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from stateless_transducer.training.config import TrainConfig

Schedule = Callable[[int, float], float]
"""(Number of the step, from 1; share of the whole training done, 0..1) -> learning rate."""


def noam_schedule(*, factor: float, model_size: int, warm_step: int) -> Schedule:
    """``factor * model_size^-0.5 * min(step^-0.5, step * warm_step^-1.5)`` (arXiv 1706.03762, section 5.3)."""
    return lambda step, done: factor * model_size**-0.5 * min(step**-0.5, step * warm_step**-1.5)


def cosine_schedule(*, peak: float, warm_step: int) -> Schedule:
    """Half a cosine from ``peak`` down to a hundredth of it over the training, and a linear start of ``warm_step``."""

    def rate(step: int, done: float) -> float:
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return peak * cosine * min(1.0, step / warm_step)

    return rate


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainConfig, *, model_size: int
) -> tuple[torch.optim.Optimizer, Schedule]:
    """The optimiser and its schedule; the trainer sets the learning rate before each step.

    Args:
        parameters: what is trained.
        config: chooses.
        model_size: width of the encoder, for noam.
    """
    if config.optimizer == "noam":
        optimizer = torch.optim.Adam(parameters, lr=0.0, betas=(0.9, 0.98), eps=1e-9)
        return optimizer, noam_schedule(factor=config.lr_factor, model_size=model_size, warm_step=config.warm_step)
    # fused: one pass over the parameters, three times faster than a loop of small operations on a CPU
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    return optimizer, cosine_schedule(peak=config.peak_lr, warm_step=config.warm_step)
