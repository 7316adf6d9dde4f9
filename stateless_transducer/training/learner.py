"""One update of the weights: forward, backward, step; on one process or many, in any precision.

Random choices in an update (dropout, topology of the loss) depend on the seed and the number of the update alone.
So a resumed run needs no generator states, and all processes draw the same loss.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stateless_transducer.data.batches import Batch, Update
from stateless_transducer.model.regularize import load_whitening_state, set_batch_count, whitening_state
from stateless_transducer.training.config import TrainConfig
from stateless_transducer.training.distributed import Rank, sum_over_ranks
from stateless_transducer.training.objective import Losses, Objective
from stateless_transducer.training.optim import build_optimizer, set_rate
from stateless_transducer.training.running_mean import RunningMean
from stateless_transducer.training.scaled_adam import norms_of_gradients

_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class UpdateResult:
    """Result of an update, over all ranks unless noted."""

    total: float
    """Sum of the loss over the utterances whose loss is finite."""
    weight: float
    """Divisor of the sum: encoder frames of all utterances."""
    metrics: Mapping[str, float]
    """Further sums by name, see `Losses.metrics`."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    rate: float
    """Learning rate."""
    bad_ids: tuple[str, ...]
    """Utterances of this rank without a finite loss."""
    num_bad: int
    """Number of utterances without a finite loss."""
    is_skipped: bool
    """Whether the weights stayed as they were."""
    is_told_to_stop: bool
    """Whether some rank was asked to stop."""

    @property
    def loss(self) -> float:
        """Loss per encoder frame."""
        return self.total / self.weight if self.weight else math.nan


_BATCHES_OF_TRAINED_MODEL = 100_000.0
"""Batches that count as done for a model of ``init_from``, as in icefall: all schedules are at their ends."""


class Learner:
    """Objective, optimizer, mean of the weights, precision and exchange between ranks.

    Args:
        objective: model and losses.
        config: options of training.
        rank: this process.
        update_s: seconds of speech of an update, all ranks together, for the schedules of `model.regularize`,
            which count updates of 600 s.
    """

    def __init__(self, objective: Objective, config: TrainConfig, rank: Rank, *, update_s: float = 600.0) -> None:
        self.objective: Objective = objective
        self._config, self._rank = config, rank
        self.optimizer: torch.optim.Optimizer
        self.optimizer, self._rate_at = build_optimizer(objective, config.optim, config.fine_tune)
        self._dtype = autocast_dtype(config.precision, rank.device)
        self.scaler: torch.amp.GradScaler = torch.amp.GradScaler(rank.device.type, enabled=self._dtype == torch.float16)
        self.mean: RunningMean | None = RunningMean.of(objective.model, config.optim)
        self._batches_per_update = update_s / config.optim.ref_duration
        self._batches_before = 0.0 if config.fine_tune.init_from is None else _BATCHES_OF_TRAINED_MODEL
        self._parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self._module: nn.Module = objective
        if rank.world_size > 1:
            device_ids = [rank.device.index] if rank.device.type == "cuda" else None
            self._module = DistributedDataParallel(
                objective, device_ids=device_ids, find_unused_parameters=objective.has_idle_parameters
            )

    @property
    def rate(self) -> float:
        """Learning rate of the last step; 0 before the first one."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def learn(self, update: Update, *, step: int, epoch: int, done: float, wants_stop: bool = False) -> UpdateResult:
        """Make one update.

        Args:
            update: batches of this rank.
            step: number of the update over all epochs, from 1.
            epoch: number of the epoch, from 0.
            done: progress through the epochs of learning rate decay, 0..1 and beyond.
            wants_stop: whether this rank was asked to stop.

        Raises:
            BatchTooLargeError: a batch does not fit into the GPU's memory.
        """
        rate = self._rate_at(step, epoch, done)
        set_batch_count(self.objective, self._batches_before + step * self._batches_per_update)
        torch.manual_seed(random.Random(f"{self._config.seed} {step} {self._rank.rank}").getrandbits(63))
        self.objective.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {"total": 0.0, "weight": 0.0}
        bad_ids: list[str] = []
        for number, batch in enumerate(update.batches, start=1):
            is_last = number == len(update.batches)
            with contextlib.nullcontext() if is_last else self._without_exchange():
                losses = self._backward(batch, step, epoch, update.num_tokens)
            utterance_losses, numbers = _read(losses)
            for name, value in numbers.items():
                sums[name] = sums.get(name, 0.0) + value
            sums["total"] += sum(value for value in utterance_losses if math.isfinite(value))
            bad_ids += [id_ for id_, value in zip(batch.ids, utterance_losses, strict=True) if not math.isfinite(value)]
        sums = self._summed({**sums, "num_bad": len(bad_ids), "num_stops": float(wants_stop)})
        num_bad, num_stops = sums.pop("num_bad"), sums.pop("num_stops")
        self._share_whitening_state()
        grad_norm = self._step(rate, is_wanted=not num_bad)
        if self.mean is not None:
            self.mean.update(self.objective.model, step)
        return UpdateResult(
            total=sums.pop("total"),
            weight=sums.pop("weight"),
            metrics=sums,
            grad_norm=grad_norm,
            rate=rate,
            bad_ids=tuple(bad_ids),
            num_bad=int(num_bad),
            is_skipped=num_bad > 0 or not math.isfinite(grad_norm),
            is_told_to_stop=num_stops > 0,
        )

    def _backward(self, batch: Batch, step: int, epoch: int, num_tokens: int) -> Losses:
        """Add the gradients of one batch to those of the update."""
        try:
            with self.autocast():
                losses: Losses = self._module(batch, step, epoch)
            # adamw, muon: the mean over tokens; others: the sum, as in the recipes that their learning rates are from.
            # The factor turns DDP's mean over ranks into a sum, so that their number does not matter
            divisor = max(1, num_tokens) if self._config.optim.has_cosine else 1
            self.scaler.scale(losses.loss * (self._rank.world_size / divisor)).backward()
        except RuntimeError as err:
            if not is_out_of_memory(err):
                raise
            raise BatchTooLargeError(_out_of_memory(batch, self._config.precision)) from err
        return losses

    def _step(self, rate: float, *, is_wanted: bool) -> float:
        """Clip the gradient and step, unless the loss or the gradient is not finite; return the gradient's norm."""
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        if is_wanted and math.isfinite(norm):
            set_rate(self.optimizer, rate)
            self.scaler.step(self.optimizer)
        # fp16: the scale falls after gradients that are not finite, but never below 1
        if self.scaler.is_enabled():
            self.scaler.update()
            if self.scaler.get_scale() < 1:
                self.scaler.update(1.0)
        return norm

    def _clip(self) -> float:
        """Clip the gradient, unless the optimizer does that itself; return its norm before."""
        optim = self._config.optim
        if optim.optimizer != "scaled-adam":
            return nn.utils.clip_grad_norm_(self._parameters, optim.max_grad_norm).item()
        return norms_of_gradients(self._parameters).norm().item()

    def _share_whitening_state(self) -> None:
        """Give each `Whiten` one state on all ranks, above the limit if it is on any: a checkpoint holds one state."""
        state = whitening_state(self.objective)
        if state and self._rank.world_size > 1:
            counts = self._summed({name: float(is_over) for name, is_over in state.items()})
            load_whitening_state(self.objective, {name: count > 0 for name, count in counts.items()})

    def _summed(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum over all ranks."""
        if self._rank.world_size == 1:
            return dict(values)
        summed = sum_over_ranks(torch.tensor(list(values.values()), dtype=torch.float64, device=self._rank.device))
        return dict(zip(values, summed.tolist(), strict=True))

    def _without_exchange(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which gradients are not exchanged: before the last batch of an update."""
        module = self._module
        return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context of the chosen precision of matrix products."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._rank.device.type, self._dtype)


def _read(losses: Losses) -> tuple[list[float], dict[str, float]]:
    """Read the losses of the utterances, and the sums by name, in one transfer from the device."""
    metrics = [value[None] for value in losses.metrics.values()]
    values = torch.cat([losses.utterance_losses, *metrics]).tolist()
    N = len(values) - len(metrics)
    return values[:N], {"weight": float(losses.weight), **dict(zip(losses.metrics, values[N:], strict=True))}


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of ``--precision``; None: float32."""
    if precision == "auto":
        # Ampere or later; `is_bf16_supported` is true on older GPUs as well, which emulate it, slower than float32
        has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        precision = "bf16" if has_bf16 else "fp32"
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


class BatchTooLargeError(ValueError):
    """A batch does not fit into the GPU's memory."""


def is_out_of_memory(err: RuntimeError) -> bool:
    """Whether an error means that a GPU's memory is full, in torch's allocator or in CUDA's libraries."""
    return isinstance(err, torch.cuda.OutOfMemoryError) or any(reason in str(err) for reason in _FULL)


def _out_of_memory(batch: Batch, precision: str) -> str:
    N, T_in, _ = batch.features.shape
    longest_s = T_in * batch.frame_shift_s
    tokens = int(batch.token_lens.max())
    bf16_advice = "" if precision in ("auto", "bf16") else ", pass `precision=bf16`"
    return (
        f"CUDA out of memory in a batch of {N} utterances, {longest_s:.1f} s and {tokens} tokens each at most "
        f"({', '.join(batch.ids[:5])}{', ...' if N > 5 else ''}). Lower `max_duration` or `max_cells`, or pass "
        f"`recompute_layers=True`{bf16_advice}; `find_max_duration=True` searches for the largest batch that fits."
    )
