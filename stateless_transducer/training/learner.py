"""One update of the weights: forward, backward, step; on one process or many, in any precision.

What is random in an update (dropout, which loss) is drawn from the seed and the number of the update alone. So a run
that goes on from a checkpoint needs no state of generators, and all processes draw the same loss.
"""

from __future__ import annotations

import contextlib
import math
import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stateless_transducer.data.batches import Batch, Update
from stateless_transducer.training.config import TrainConfig
from stateless_transducer.training.distributed import Rank, sum_over_ranks
from stateless_transducer.training.objective import Losses, Objective
from stateless_transducer.training.optim import RunningMean, build_optimizer, set_rate

_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Learnt:
    """What became of an update, over all processes unless said otherwise."""

    nll: float
    """Sum over the utterances that have a finite one."""
    num_frames: float
    """Encoder frames of all utterances."""
    grad_norm: float
    """Before clipping."""
    rate: float
    """Learning rate."""
    bad_ids: tuple[str, ...]
    """Utterances of this process without a finite loss."""
    num_bad: int
    """How many there are."""
    is_skipped: bool
    """The weights stay as they were."""
    is_told_to_stop: bool
    """Some process was asked to stop."""

    @property
    def loss(self) -> float:
        """Nll a frame."""
        return self.nll / self.num_frames if self.num_frames else math.nan


class Learner:
    """Objective, optimizer and all that comes between."""

    def __init__(self, objective: Objective, config: TrainConfig, rank: Rank, *, model_size: int) -> None:
        self.objective, self._config, self._rank = objective, config, rank
        self.optimizer, self._rate_at = build_optimizer(
            objective, config.optim, config.fine_tune, model_size=model_size
        )
        self._dtype = autocast_dtype(config.precision, rank.device)
        self.scaler = torch.amp.GradScaler(rank.device.type, enabled=self._dtype == torch.float16)
        self.mean = RunningMean(objective.model, config.optim.ema_decay) if config.optim.ema_decay else None
        self._parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self._module: nn.Module = objective
        if rank.world_size > 1:
            device_ids = [rank.device.index] if rank.device.type == "cuda" else None
            # the CTC head goes without gradient once its epochs are over
            has_idle = objective.ctc_head is not None
            self._module = DistributedDataParallel(objective, device_ids=device_ids, find_unused_parameters=has_idle)

    @property
    def rate(self) -> float:
        """Learning rate of the last step; 0 before the first one."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def learn(self, update: Update, *, step: int, epoch: int, done: float, wants_stop: bool = False) -> Learnt:
        """One update.

        Args:
            update: what to learn from.
            step: its number over all epochs, from 1.
            epoch: from 0.
            done: share of the epochs over which the rate falls that is done, 0..1 and beyond.
            wants_stop: whether this process was asked to stop.

        Raises:
            ValueError: a batch does not fit into the GPU's memory.
        """
        config = self._config
        rate = self._rate_at(step, done)
        is_modified = random.Random(f"{config.seed} {step}").random() < config.optim.modified_transducer_prob
        torch.manual_seed(random.Random(f"{config.seed} {step} {self._rank.rank}").getrandbits(63))
        self.objective.train()
        self.optimizer.zero_grad(set_to_none=True)
        nll, num_frames, bad_ids = 0.0, 0.0, []
        for number, batch in enumerate(update.batches, start=1):
            is_last = number == len(update.batches)
            with contextlib.nullcontext() if is_last else self._without_exchange():
                losses = self._backward(batch, 1 if is_modified else None, step, epoch, update.num_tokens)
            is_finite = losses.is_finite.tolist()
            nll += sum(own for own, fine in zip(losses.nll.tolist(), is_finite, strict=True) if fine)
            num_frames += float(losses.encoder_lens.sum())
            bad_ids += [id_ for id_, fine in zip(batch.ids, is_finite, strict=True) if not fine]
        nll, num_frames, num_bad, num_stops = self._summed(nll, num_frames, len(bad_ids), wants_stop)
        grad_norm = self._step(rate, is_wanted=not num_bad)
        return Learnt(
            nll=nll,
            num_frames=num_frames,
            grad_norm=grad_norm,
            rate=rate,
            bad_ids=tuple(bad_ids),
            num_bad=int(num_bad),
            is_skipped=num_bad > 0 or not math.isfinite(grad_norm),
            is_told_to_stop=num_stops > 0,
        )

    def _backward(
        self, batch: Batch, max_symbols_per_frame: Literal[1] | None, step: int, epoch: int, num_tokens: int
    ) -> Losses:
        """Gradients of one batch, added to those that are there; what they are of."""
        optim = self._config.optim
        try:
            with self.autocast():
                losses: Losses = self._module(batch, max_symbols_per_frame, epoch < optim.ctc_epochs)
            loss = self._weighted(losses, step)
            # noam: summed, as the recipe whose learning rates it takes; adamw: the mean over tokens. DDP's mean over
            # processes is made a sum, so that their number does not matter
            scale = self._rank.world_size / (1 if optim.optimizer == "noam" else max(1, num_tokens))
            self.scaler.scale(loss * scale).backward()
        except RuntimeError as err:
            if not is_out_of_memory(err):
                raise
            raise ValueError(_out_of_memory(batch, self._config.precision)) from err
        return losses.detach()

    def _weighted(self, losses: Losses, step: int) -> Tensor:
        """The sum that is differentiated."""
        loss = losses.nll
        if losses.simple_nll is not None:
            pruned_weight, simple_weight = self._config.prune.weights(step)
            loss = pruned_weight * loss + simple_weight * losses.simple_nll
        # what is not finite must not reach the other utterances; that it was there skips the whole update
        loss = torch.where(losses.is_finite, loss, 0).sum()
        if losses.ctc_nll is not None:
            loss = loss + self._config.optim.ctc_loss_scale * losses.ctc_nll.sum()
        return loss

    def _step(self, rate: float, *, is_wanted: bool) -> float:
        """Clip and step, unless something is not finite; the norm of the gradient."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._config.optim.max_grad_norm).item()
        if is_wanted and math.isfinite(norm):
            set_rate(self.optimizer, rate, self._config.optim)
            self.scaler.step(self.optimizer)
            if self.mean is not None:
                self.mean.update()
        # of fp16: backs off where gradients were not finite, and never below 1
        if self.scaler.is_enabled():
            self.scaler.update()
            if self.scaler.get_scale() < 1:
                self.scaler.update(1.0)
        return norm

    def _summed(self, *values: float) -> list[float]:
        """Over all processes."""
        if self._rank.world_size == 1:
            return list(values)
        return sum_over_ranks(torch.tensor(values, dtype=torch.float64, device=self._rank.device)).tolist()

    def _without_exchange(self) -> contextlib.AbstractContextManager:
        """Gradients stay with this process until the last batch of an update."""
        module = self._module
        return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision of matrix products."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._rank.device.type, self._dtype)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Of ``--precision``; None: float32."""
    if precision == "auto":
        # Ampere or later; `is_bf16_supported` is true of older ones, too, which emulate it, slower than float32
        has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        precision = "bf16" if has_bf16 else "fp32"
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def is_out_of_memory(err: RuntimeError) -> bool:
    """Whether a GPU's memory is full: torch's part of it, or what CUDA and its libraries take beside."""
    return isinstance(err, torch.cuda.OutOfMemoryError) or any(reason in str(err) for reason in _FULL)


def _out_of_memory(batch: Batch, precision: str) -> str:
    N, T_in, _ = batch.features.shape
    longest_s = T_in * batch.frame_shift_s
    tokens = int(batch.token_lens.max())
    also = "" if precision in ("auto", "bf16") else ", try `--precision bf16`"
    return (
        f"CUDA out of memory in a batch of {N} utterances, {longest_s:.1f} s and {tokens} tokens each at most "
        f"({', '.join(batch.ids[:5])}{', ...' if N > 5 else ''}). Lower `--max-duration` or `--max-cells`, say "
        f"`--recompute-layers true`{also}; `--find-max-duration true` looks for the largest that fits."
    )
