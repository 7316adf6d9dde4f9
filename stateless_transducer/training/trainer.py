"""The training loop."""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stateless_transducer import __version__
from stateless_transducer.checkpoint import Checkpoint, epoch_path, load_checkpoint, save_checkpoint, saved_epochs
from stateless_transducer.data.batches import (
    Batch,
    CutSet,
    TrainingSet,
    batches_of,
    evaluation_loader,
    set_epoch,
    training_loader,
)
from stateless_transducer.data.config import DataConfig
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.tokens import TokenTable
from stateless_transducer.training.config import TrainConfig
from stateless_transducer.training.distributed import Rank, sum_over_ranks
from stateless_transducer.training.objective import Objective
from stateless_transducer.training.optim import build_optimizer
from stateless_transducer.training.progress import TrainingDisplay
from stateless_transducer.training.random_state import random_state, seed_all, set_random_state


class Trainer:
    """Trains a fresh model, or goes on with a checkpoint, epoch by epoch."""

    def __init__(
        self,
        *,
        config: TrainConfig,
        data_config: DataConfig,
        model_config: ModelConfig,
        fbank_config: FbankConfig,
        token_table: TokenTable,
        training_set: TrainingSet,
        dev_cuts: CutSet | None,
        rank: Rank,
        logger: logging.Logger,
        command: str,
    ) -> None:
        self._config, self._data_config, self._model_config = config, data_config, model_config
        self._fbank_config, self._token_table, self._command = fbank_config, token_table, command
        self._rank, self._logger = rank, logger
        # denormal numbers make backward passes on a CPU several times slower
        torch.set_flush_denormal(True)
        self._loader, self._sampler = training_loader(
            training_set, token_table, data_config, seed=config.seed, rank=rank.rank, world_size=rank.world_size
        )
        self._dev_loader = None if dev_cuts is None else evaluation_loader(dev_cuts, token_table, data_config)
        self._epoch_seconds = training_set.seconds
        # the same weights on every rank: the generators part only below
        seed_all(config.seed)
        objective = Objective(build_model(model_config), model_config, has_ctc_head=config.ctc_loss_scale > 0)
        self._plain_objective = objective.to(rank.device)
        self._optimizer, self._rate_at = build_optimizer(
            objective.parameters(),
            config,
            model_size=model_config.attention_dim,
        )
        self._step = 0
        self._best: dict[str, float] = {"train": math.inf, "valid": math.inf}
        seed_all(config.seed + rank.rank)
        if config.start_epoch:
            self._resume(config.start_epoch)
        self._objective: nn.Module = self._plain_objective
        if rank.world_size > 1:
            device_ids = [rank.device.index] if rank.device.type == "cuda" else None
            # the CTC head goes without gradient once its epochs are over
            self._objective = DistributedDataParallel(
                self._plain_objective, device_ids=device_ids, find_unused_parameters=objective.ctc_head is not None
            )

    @property
    def num_parameters(self) -> int:
        """Of the model alone."""
        return sum(parameter.numel() for parameter in self._plain_objective.model.parameters())

    def run(self) -> None:
        """All epochs that are left."""
        config = self._config
        display = contextlib.nullcontext()
        if self._rank.is_main:
            display = TrainingDisplay(
                config.exp_dir,
                total_seconds=config.num_epochs * self._epoch_seconds,
                done_seconds=config.start_epoch * self._epoch_seconds,
                tensorboard=config.tensorboard,
            )
        with display as shown:
            for epoch in range(config.start_epoch, config.num_epochs):
                train_loss = self._train_epoch(epoch, shown)
                valid_loss = self._validate(epoch, shown)
                if self._rank.is_main:
                    self._save(epoch, train_loss, valid_loss)

    def _train_epoch(self, epoch: int, display: TrainingDisplay | None) -> float:
        """One pass over the training set; returns the nll a frame over it, of all ranks."""
        self._sampler.set_epoch(epoch)
        set_epoch(self._loader, epoch)
        self._objective.train()
        recent = _Mean(decay=1 - 1 / 200)
        whole = _Mean()
        seconds = 0.0
        for index, batch in enumerate(batches_of(self._loader)):
            done = (epoch + seconds / self._epoch_seconds) / self._config.num_epochs
            rate = self._rate_at(self._step + 1, done)
            nll, num_frames, grad_norm = self._train_batch(batch.to(self._rank.device), epoch, rate)
            # of all ranks, so that all have the same learning rate
            batch_seconds = self._sum(batch.seconds)
            seconds += batch_seconds
            recent.add(nll, num_frames)
            whole.add(nll, num_frames)
            if display is not None:
                display.advance(batch_seconds, epoch=epoch, num_epochs=self._config.num_epochs, loss=recent.value)
            if self._step % self._config.log_interval == 0:
                self._log_batch(epoch, index, batch, nll / num_frames, num_frames, recent, grad_norm, rate, display)
            if self._step % self._config.valid_interval == 0:
                self._validate(epoch, display)
        total, weight = self._sum(whole.total), self._sum(whole.weight)
        if not weight:
            raise ValueError(
                f"An epoch has no batch: `--max-duration` {self._data_config.max_duration:g} s is more than the "
                "training set fills; lower it, or say `--drop-last false`."
            )
        return total / weight

    def _sum(self, value: float) -> float:
        """Over all ranks."""
        if self._rank.world_size == 1:
            return value
        return sum_over_ranks(torch.tensor(value, dtype=torch.float64, device=self._rank.device)).item()

    def _train_batch(self, batch: Batch, epoch: int, rate: float) -> tuple[float, float, float]:
        """One update; returns summed nll, encoder frames, norm of the gradient."""
        config = self._config
        self._step += 1
        # the same draw on every rank, and again the same when an epoch is done over
        is_modified = random.Random(f"{config.seed} {self._step}").random() < config.modified_transducer_prob
        with self._autocast():
            nll, ctc_nll, lens = self._objective(batch, 1 if is_modified else None, epoch < config.ctc_epochs)
        total = nll.sum()
        if not torch.isfinite(total):
            bad = [id_ for id_, value in zip(batch.ids, nll.tolist(), strict=True) if not math.isfinite(value)]
            raise ValueError(
                f"The loss of batch {self._step} is not finite, by the utterances {', '.join(bad)}. Look at their "
                "sound and text, lower the learning rate, or raise `--warm-step`."
            )
        loss = total if ctc_nll is None else total + config.ctc_loss_scale * ctc_nll.sum()
        # noam: summed, as the recipe whose learning rates it takes; adamw: the mean over tokens
        scale = 1.0 if config.optimizer == "noam" else 1.0 / max(1, int(batch.token_lens.sum()))
        self._optimizer.zero_grad(set_to_none=True)
        (loss * scale).backward()
        grad_norm = nn.utils.clip_grad_norm_(self._plain_objective.parameters(), config.max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
            # a resumed optimiser brings the old one
            if config.optimizer == "adamw":
                group["weight_decay"] = config.weight_decay
        self._optimizer.step()
        return total.item(), float(lens.sum()), grad_norm.item()

    def _log_batch(self, epoch, index, batch, loss, num_frames, recent, grad_norm, rate, display) -> None:
        self._logger.debug(
            f"Epoch {epoch}, batch {index}, loss[loss={loss:.4g}, over {num_frames:.2f} frames], "
            f"tot_loss[loss={recent.value:.4g}, over {recent.weight:.2f} frames], batch size: {len(batch.ids)}, "
            f"learning rate: {rate:.3g}" + (f", {display.speed:.0f} s of speech/s" if display is not None else "")
        )
        if display is not None:
            display.record(
                self._step,
                epoch=epoch,
                current_loss=loss,
                tot_loss=recent.value,
                learning_rate=rate,
                grad_norm=grad_norm,
                speech_seconds_per_second=display.speed,
            )

    def _validate(self, epoch: int, display: TrainingDisplay | None) -> float:
        """Nll a frame on the dev set, all of it on every rank; always the same loss. NaN without a dev set."""
        if self._dev_loader is None:
            return math.nan
        model, mean = self._plain_objective.model.eval(), _Mean()
        symbols_a_frame = 1 if self._config.modified_transducer_prob == 1 else None
        with torch.no_grad():
            for batch in batches_of(self._dev_loader):
                batch = batch.to(self._rank.device)
                encoder_out, lens = model.encode(batch.features, batch.feature_lens)
                nll = model.nll(
                    encoder_out, lens, batch.tokens, batch.token_lens, max_symbols_per_frame=symbols_a_frame
                )
                # an utterance without a path (more tokens than frames) would hide all others
                has_path = nll.isfinite()
                mean.add(nll[has_path].sum().item(), float(lens[has_path].sum()))
        model.train()
        self._logger.info(f"Epoch {epoch}, validation: loss={mean.value:.4g}, over {mean.weight:.2f} frames")
        if display is not None:
            display.record(self._step, epoch=epoch, valid_loss=mean.value)
        return mean.value

    def _autocast(self) -> contextlib.AbstractContextManager:
        device, precision = self._rank.device.type, self._config.precision
        is_bf16 = precision == "bf16" or (precision == "auto" and device == "cuda" and torch.cuda.is_bf16_supported())
        return torch.autocast(device, torch.bfloat16) if is_bf16 else contextlib.nullcontext()

    def _save(self, epoch: int, train_loss: float, valid_loss: float) -> None:
        objective = self._plain_objective
        is_best = {"train": train_loss < self._best["train"], "valid": valid_loss < self._best["valid"]}
        self._best = {"train": min(self._best["train"], train_loss), "valid": min(self._best["valid"], valid_loss)}
        checkpoint = Checkpoint(
            weights=_on_cpu(objective.model.state_dict()),
            model_config=self._model_config,
            fbank_config=self._fbank_config,
            token_table=self._token_table,
            provenance={
                "version": __version__,
                "torch": str(torch.__version__),
                "command": self._command,
                "epoch": epoch,
                "step": self._step,
                "train_loss": train_loss,
                "valid_loss": valid_loss,
            },
            training_state={
                "optimizer": self._optimizer.state_dict(),
                "ctc_head": None if objective.ctc_head is None else _on_cpu(objective.ctc_head.state_dict()),
                "options": self._options_of_state(),
                "step": self._step,
                "position": {"epoch": epoch + 1, "batch": 0},
                "best": self._best,
                "random": random_state(),
            },
        )
        path = epoch_path(self._config.exp_dir, epoch)
        save_checkpoint(path, checkpoint)
        self._logger.info(f"Saved {path}: train loss {train_loss:.4g}, validation loss {valid_loss:.4g}")
        for name, best in is_best.items():
            if best:
                save_checkpoint(self._config.exp_dir / f"best-{name}-loss.pt", checkpoint)

    def _options_of_state(self) -> dict[str, Any]:
        """Options on which the optimiser's state depends."""
        return {"--optimizer": self._config.optimizer, "--ctc-loss-scale above 0": self._config.ctc_loss_scale > 0}

    def _resume(self, start_epoch: int) -> None:
        checkpoint = load_resumable(self._config, start_epoch)
        if (checkpoint.model_config, checkpoint.token_table) != (self._model_config, self._token_table):
            raise ValueError(
                f"{epoch_path(self._config.exp_dir, start_epoch - 1)} holds a model of other sizes or tokens than "
                "asked for; give the options and `--lang-dir` it was trained with, or another `--exp-dir`."
            )
        state: Mapping[str, Any] = checkpoint.training_state or {}
        for flag, value in self._options_of_state().items():
            if state["options"][flag] != value:
                raise ValueError(f"`{flag}` was {state['options'][flag]} before; going on, it cannot become {value}.")
        self._plain_objective.model.load_state_dict(checkpoint.weights)
        if self._plain_objective.ctc_head is not None and state["ctc_head"] is not None:
            self._plain_objective.ctc_head.load_state_dict(state["ctc_head"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._step, self._best = state["step"], dict(state["best"])
        if self._rank.is_main:
            set_random_state(state["random"])
        else:
            seed_all(self._config.seed + self._rank.rank + 1000 * start_epoch)
        self._logger.info(f"Goes on with epoch {start_epoch}, after {self._step} batches")


def load_resumable(config: TrainConfig, start_epoch: int) -> Checkpoint:
    """The checkpoint from which ``--start-epoch`` goes on.

    Raises:
        ValueError: it is not there, or holds a model without training state.
    """
    path = epoch_path(config.exp_dir, start_epoch - 1)
    if not path.is_file():
        there = ", ".join(f"epoch-{n}.pt" for n in saved_epochs(config.exp_dir)) or "no checkpoint"
        raise ValueError(
            f"`--start-epoch` {start_epoch} needs {path.name} in `--exp-dir` {config.exp_dir}, which holds {there}."
        )
    checkpoint = load_checkpoint(path)
    if checkpoint.training_state is None:
        raise ValueError(f"{path} holds a model without its training state; training cannot go on with it.")
    position = checkpoint.training_state["position"]
    if position != {"epoch": start_epoch, "batch": 0}:
        raise ValueError(f"{path} was another file: it goes on with epoch {position['epoch']}, not {start_epoch}.")
    return checkpoint


class _Mean:
    """Mean of totals over weights, old ones fading by ``decay`` at each addition."""

    def __init__(self, decay: float = 1.0) -> None:
        self.total, self.weight, self._decay = 0.0, 0.0, decay

    def add(self, total: float, weight: float) -> None:
        self.total = self.total * self._decay + total
        self.weight = self.weight * self._decay + weight

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight else math.nan


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in weights.items()}
