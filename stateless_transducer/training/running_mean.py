"""Mean of the weights along a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stateless_transducer.checkpoint import weight_faults
from stateless_transducer.training.config import OptimConfig


class RunningMean:
    """Mean of the weights, kept beside them: an exponential one, or that since the start of the run.

    ``ema_decay`` d: ``mean = d * mean + (1 - d) * weights`` after each update, from the initial weights on.

    ``average_period`` P: the plain mean of the weights after steps P, 2P, ..., in float64. The mean over a part of the
    run follows from the means at both of its ends, see `weight_averages.average_between`. In a run that begins its mean
    late, the weights at this step stand for all earlier ones.

    Args:
        model: model whose weights the mean starts from.
        ema_decay: decay of the exponential mean.
        average_period: steps between two additions to the plain mean; 0: the mean is exponential.
    """

    def __init__(self, model: nn.Module, *, ema_decay: float = 0.0, average_period: int = 0) -> None:
        self._decay, self._period = ema_decay, average_period
        self.since: int = 0
        """Step after which the plain mean has weights: 0, or where a run without a mean was resumed with one."""
        # the differences between means of long runs are small
        dtype = torch.float64 if average_period else None
        self.weights = {
            name: value.to(dtype if value.is_floating_point() else None, copy=True)
            for name, value in model.state_dict().items()
        }

    @staticmethod
    def of(model: nn.Module, config: OptimConfig) -> RunningMean | None:
        """Return the mean that the options ask for."""
        if not (config.ema_decay or config.average_period):
            return None
        return RunningMean(model, ema_decay=config.ema_decay, average_period=config.average_period)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights after a step, counted from 1, into the mean."""
        if self._period and step % self._period:
            return
        share = self._period / step if self._period else 1 - self._decay
        for name, value in model.state_dict().items():
            mean = self.weights[name]
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), share)
            else:
                mean.copy_(value)

    def load(self, weights: Mapping[str, Tensor], *, since: int = 0) -> None:
        """Set the mean, and the step after which it has weights.

        Raises:
            ValueError: the weights are those of another model.
        """
        if faults := weight_faults(weights, self.weights):
            raise ValueError(faults)
        self.since = since
        for name, mean in self.weights.items():
            mean.copy_(weights[name])
