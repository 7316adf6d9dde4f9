"""The training loop: epochs of updates, validation, checkpoints; stops when told to, and goes on where it was."""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import dataclass

import torch

from stateless_transducer import __version__
from stateless_transducer.checkpoint import Checkpoint, batch_path, epoch_path, save_checkpoint, saved_batches
from stateless_transducer.data.batches import TrainingLoader, TrainingSet
from stateless_transducer.data.config import DataConfig
from stateless_transducer.data.plan import Lengths
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.tokens import TokenTable
from stateless_transducer.training.config import TrainConfig
from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.finetune import adapted_weights
from stateless_transducer.training.learner import Learner, Learnt
from stateless_transducer.training.objective import Objective
from stateless_transducer.training.optim import freeze, warm_up_fault
from stateless_transducer.training.progress import TrainingDisplay
from stateless_transducer.training.state import (
    Position,
    best_path,
    link_or_copy,
    load_resumable,
    on_cpu,
    restore,
    resumable,
    set_aside_later,
    training_state,
)
from stateless_transducer.training.stopping import StopRequest
from stateless_transducer.training.validation import Validation


@dataclass(frozen=True)
class Plan:
    """What is trained, on what, and how."""

    config: TrainConfig
    data_config: DataConfig
    model_config: ModelConfig
    fbank_config: FbankConfig
    token_table: TokenTable
    training_set: TrainingSet
    mixed_set: TrainingSet | None
    """The second corpus."""
    dev_set: TrainingSet | None
    init_from: Checkpoint | None
    command: str
    """Told to whoever looks into the checkpoint."""

    @property
    def lengths(self) -> Lengths:
        """Of all utterances that are learnt from."""
        lengths = self.training_set.lengths
        return lengths if self.mixed_set is None else lengths.then(self.mixed_set.lengths)

    def build_objective(self) -> Objective:
        """A model with the weights of the start, drawn from the seed or taken from a trained one."""
        torch.manual_seed(self.config.seed)
        model = build_model(self.model_config)
        if self.init_from is not None:
            model.load_state_dict(adapted_weights(self.init_from, self.token_table, model.state_dict())[0])
        freeze(model, self.config.fine_tune.freeze_layers)
        model.encoder.recompute_stages = self.config.recompute_layers
        if self.config.compile:
            for stage in model.encoder.stages:
                stage.compile(dynamic=True)
        has_ctc_head = self.config.optim.ctc_loss_scale > 0
        return Objective(model, self.model_config, has_ctc_head=has_ctc_head, prune=self.config.prune)

    def loader(self, rank: Rank) -> TrainingLoader:
        """The batches of one process."""
        return TrainingLoader(
            self.training_set,
            self.token_table,
            self.data_config,
            seed=self.config.seed,
            rank=rank.rank,
            world_size=rank.world_size,
            accumulate=self.config.optim.accumulate_grad,
            mixed=self.mixed_set,
        )


class Trainer:
    """Carries out a plan on one of the processes."""

    def __init__(self, plan: Plan, rank: Rank, logger: logging.Logger, stop: StopRequest) -> None:
        self._plan, self._config, self._rank, self._logger, self._stop = plan, plan.config, rank, logger, stop
        # denormal numbers make backward passes on a CPU several times slower
        torch.set_flush_denormal(True)
        logger.info("About to create model")
        objective = plan.build_objective().to(rank.device)
        self._model, self._loader = objective.model, plan.loader(rank)
        logger.info(f"Number of model parameters: {sum(each.numel() for each in self._model.parameters())}")
        if rank.world_size > 1:
            logger.info("Using DDP")
        self._learner = Learner(objective, plan.config, rank, model_size=plan.model_config.encoder.width)
        self._position = Position()
        self._validation = None
        if plan.dev_set is not None:
            modified = plan.config.optim.modified_transducer_prob == 1
            self._validation = Validation(plan.dev_set, plan.token_table, plan.data_config, rank, modified=modified)
        path = resumable(plan.config)
        if path is not None:
            self._go_on_from(load_resumable(path, plan.config.start_epoch), str(path))

    def _go_on_from(self, checkpoint: Checkpoint, name: str) -> None:
        plan = self._plan
        before, now = checkpoint.model_config.sizes(), plan.model_config.sizes()
        changed = [f"{key} was {before.get(key)} and is {now[key]}" for key in now if before.get(key) != now[key]]
        if checkpoint.token_table != plan.token_table:
            changed.append(f"the tokens are others ({len(checkpoint.token_table)} before, {len(plan.token_table)} now)")
        if changed:
            raise ValueError(
                f"{name} holds a model of other sizes or tokens than asked for: {'; '.join(changed)}. Give the options "
                "and `--lang-dir` it was trained with, or another `--exp-dir`."
            )
        restore(checkpoint, self._learner, self._position, self._config, self._loader.contents)
        position = self._position
        if self._config.start_epoch and self._rank.is_main:
            folder = set_aside_later(self._config.exp_dir, position, self._config.num_epochs)
            if folder is not None:
                self._logger.warning(f"The checkpoints that were written after {name} are now in {folder}")
        self._logger.info(
            f"Loading checkpoint from {name}: goes on with epoch {position.epoch}, batch {position.batch}, "
            f"{position.step} in all"
        )

    def run(self) -> bool:
        """All that is left of the epochs; returns whether that is done, or training was told to stop before."""
        config, position = self._config, self._position
        if position.epoch >= config.num_epochs:
            self._logger.info(f"All {config.num_epochs} epochs are trained already")
        display = contextlib.nullcontext()
        if self._rank.is_main:
            # other epochs are as long, more or less
            batches = self._loader.plan(position.epoch)
            seconds = self._loader.seconds(batches)
            if fault := warm_up_fault(config, len(batches), model_size=self._plan.model_config.encoder.width):
                self._logger.warning(fault)
            display = TrainingDisplay(
                config.exp_dir,
                total_seconds=config.num_epochs * seconds,
                done_seconds=position.epoch * seconds,
                tensorboard=config.tensorboard,
                device=self._rank.device,
            )
        with display as shown:
            while position.epoch < config.num_epochs:
                if not self._train_epoch(shown):
                    return False
                valid_loss = self._validate(shown)
                self._save_epoch(valid_loss)
        return True

    def _train_epoch(self, display: TrainingDisplay | None) -> bool:
        """What is left of one pass over the training set; returns whether it came to its end."""
        config, position = self._config, self._position
        plan = self._loader.plan(position.epoch)
        if not plan:
            raise ValueError(
                f"An epoch has no batch: `--max-duration` {self._plan.data_config.max_duration:g} s is more than the "
                "training set fills; lower it, or say `--drop-last false`."
            )
        self._logger.info(f"epoch {position.epoch}, learning rate {self._learner.rate:g}")
        heard, whole = self._loader.seconds(plan[: position.batch]), self._loader.seconds(plan)
        if display is not None:
            display.advance(heard, where=f"epoch {position.epoch}", loss=position.recent.value)
        for update in self._loader.updates(position.epoch, first=position.batch, plan=plan):
            learnt = self._learner.learn(
                update,
                step=position.step + 1,
                epoch=position.epoch,
                done=(position.epoch + heard / whole) / (config.optim.decay_epochs or config.num_epochs),
                wants_stop=self._stop.name is not None,
            )
            heard += update.seconds
            position.step, position.batch = position.step + 1, position.batch + 1
            self._note(learnt)
            if display is not None:
                where = f"epoch {position.epoch} ({position.epoch + 1} of {config.num_epochs}), batch {position.batch}"
                display.advance(update.seconds, where=f"{where} of {len(plan)}", loss=position.recent.value)
            if position.step % config.log_interval == 0:
                self._log_batch(learnt, sum(len(batch.ids) for batch in update.batches), display)
            # behind the last one, the epoch's own validation and checkpoint follow
            if position.batch < len(plan) and not self._between_batches(learnt, display):
                return False
        return True

    def _between_batches(self, learnt: Learnt, display: TrainingDisplay | None) -> bool:
        """Validation and checkpoints within an epoch; returns whether training goes on."""
        config, step = self._config, self._position.step
        if step % config.valid_interval == 0:
            self._validate(display)
        if learnt.is_told_to_stop:
            self._save_batch()
            by = f" by {self._stop.name}" if self._stop.name else ""
            self._logger.info(f"Stopped{by}; go on with `--resume true`")
            return False
        if config.save_every and step % config.save_every == 0:
            self._save_batch()
        return True

    def _note(self, learnt: Learnt) -> None:
        """Of a loss, or of its absence."""
        position = self._position
        if not learnt.is_skipped:
            position.num_bad = 0
            position.recent.add(learnt.nll, learnt.num_frames)
            position.whole.add(learnt.nll, learnt.num_frames)
            return
        if not learnt.num_bad and self._learner.scaler.get_scale() > 1:
            # fp16 looks for a scale at which no gradient is infinite
            self._logger.debug(f"Batch {position.step}: gradient scale lowered to {self._learner.scaler.get_scale():g}")
            return
        position.num_bad += 1
        what = f"the loss of {learnt.num_bad} utterances" if learnt.num_bad else "the gradient"
        whose = f": {', '.join(learnt.bad_ids)}" if learnt.bad_ids else ""
        self._logger.warning(f"Batch {position.step} is skipped, {what} is not finite{whose}")
        if position.num_bad >= self._config.max_bad_batches:
            raise ValueError(
                f"{position.num_bad} batches in a row without a finite loss or gradient, the last one with {what}"
                f"{whose}. If few utterances are to blame, look at their sound and text; if all are, lower "
                "`--lr-factor` or `--peak-lr`, or raise `--warm-step`, and go on from an earlier "
                "checkpoint with `--start-epoch`."
            )

    def _log_batch(self, learnt: Learnt, num_utterances: int, display: TrainingDisplay | None) -> None:
        position, recent = self._position, self._position.recent
        self._logger.debug(
            f"Epoch {position.epoch}, batch {position.batch - 1}, loss[loss={learnt.loss:.4g}, "
            f"over {learnt.num_frames:.2f} frames. ], tot_loss[loss={recent.value:.4g}, over {recent.weight:.2f} "
            f"frames. ], batch size: {num_utterances}, learning rate: {learnt.rate:.3g}"
            + (f", {display.speed:.0f} s of speech/s, {display.memory:.1f} GiB" if display is not None else "")
        )
        if display is not None:
            display.record(
                position.step,
                epoch=position.epoch,
                current_loss=learnt.loss,
                tot_loss=recent.value,
                learning_rate=learnt.rate,
                grad_norm=learnt.grad_norm,
                speech_seconds_per_second=display.speed,
                memory_gib=display.memory,
            )

    def _validate(self, display: TrainingDisplay | None) -> float:
        """Nll a frame on the dev set; NaN without one."""
        if self._validation is None:
            return math.nan
        position = self._position
        self._logger.info("Computing validation loss")
        loss, num_frames = self._validation.loss(self._model, self._learner.autocast())
        self._logger.info(f"Epoch {position.epoch}, validation: loss={loss:.4g}, over {num_frames:.2f} frames. ")
        if display is not None:
            samples = self._validation.samples(self._model)
            for id_, said, found in samples.texts:
                self._logger.debug(f"{id_} said: {said} | found: {found}")
            rows = "".join(f"| {id_} | {said} | {found} |\n" for id_, said, found in samples.texts)
            display.show_samples(position.step, f"| id | said | found |\n|---|---|---|\n{rows}", samples.occupations)
            display.record(
                position.step, epoch=position.epoch, valid_loss=loss, share_of_cells_kept=samples.share_of_cells
            )
        return loss

    def _save_epoch(self, valid_loss: float) -> None:
        """``epoch-N.pt``, and what is the best so far; the run goes on with the next epoch."""
        position, train_loss = self._position, self._position.whole.value
        losses = {"train": train_loss, "valid": valid_loss}
        is_best = {name: loss < position.best[name] for name, loss in losses.items()}
        # a NaN is never lower
        position.best = {name: losses[name] if better else position.best[name] for name, better in is_best.items()}
        epoch = position.epoch
        position.best_epoch |= {name: epoch for name, better in is_best.items() if better}
        position.next_epoch()
        if not self._rank.is_main:
            return
        path = epoch_path(self._config.exp_dir, epoch)
        validation = "" if math.isnan(valid_loss) else f", validation loss {valid_loss:.4g}"
        self._logger.info(f"Saving checkpoint to {path}: train loss {train_loss:.4g}{validation}")
        save_checkpoint(path, self._checkpoint(epoch, train_loss, valid_loss))
        for name, better in is_best.items():
            if better:
                link_or_copy(path, best_path(self._config.exp_dir, name))

    def _save_batch(self) -> None:
        """``checkpoint-N.pt`` within the epoch; older ones than are wanted are removed."""
        if not self._rank.is_main:
            return
        config, position = self._config, self._position
        path = batch_path(config.exp_dir, position.step)
        self._logger.info(f"Saving checkpoint to {path}")
        save_checkpoint(path, self._checkpoint(position.epoch, position.whole.value, math.nan))
        if config.keep_last:
            for step in saved_batches(config.exp_dir)[: -config.keep_last]:
                batch_path(config.exp_dir, step).unlink(missing_ok=True)

    def _checkpoint(self, epoch: int, train_loss: float, valid_loss: float) -> Checkpoint:
        plan = self._plan
        return Checkpoint(
            weights=on_cpu(self._model.state_dict()),
            model_config=plan.model_config,
            fbank_config=plan.fbank_config,
            token_table=plan.token_table,
            provenance={
                "version": __version__,
                "torch": str(torch.__version__),
                "command": plan.command,
                "epoch": epoch,
                "step": self._position.step,
                "train_loss": train_loss,
                "valid_loss": valid_loss,
            },
            training_state=training_state(self._learner, self._position, plan.config, self._loader.contents),
        )
